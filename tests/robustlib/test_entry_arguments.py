"""Evaluations, audits, certificates and trainings refuse what makes no sense, as attacks do."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustlib.attacks.pgd import pgd
from robustlib.audit.audit import audit
from robustlib.defences.smoothing import certify, predict
from robustlib.evaluation.batches import evaluate_batches, evaluate_curve
from robustlib.rng import Draws
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit
from tests.helpers.wrong_tensors import WRONG, Plane, X, Y

CPU = torch.device("cpu")
NO_NORM: Any = "l2"


@pytest.fixture
def model() -> Plane:
    return Plane().eval()


# An evaluation and a training take images as uint8 too, draw by themselves, and bring images and labels to one device.
DATA = [
    row
    for row in WRONG
    if not any(words in f"{row[0].keys()} {row[2]}" for words in ("draws", "torch.uint8", "device"))
]


@pytest.mark.parametrize(("wrong", "error", "message"), DATA)
@pytest.mark.parametrize("entry", ["evaluate", "audit", "fit"])
def test_entries_refuse_the_same_data(entry: str, wrong: dict, error: type, message: str, model: Plane):
    x, y = (wrong.get("x", X), wrong.get("y", Y))
    message = message.replace(r"\[0, 1\], got torch.int64$", r"\[0, 1\]")
    with pytest.raises(error, match=message):
        if entry == "evaluate":
            list(evaluate_batches(model, x, y, [("pgd", pgd)], eps=0.1))
        elif entry == "audit":
            list(audit(model, x, y, eps=0.1, queries=50))
        else:
            list(fit(model, x, y, TrainSettings(epochs=1, validation=0.25), seed=0, device=CPU))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: list(evaluate_batches(m, X, Y, [], eps=-1.0)), "evaluate: expected eps of at least 0, got -1.0"),
        (lambda m: list(evaluate_batches(m, X, Y, [], eps=math.nan)), "evaluate: expected eps of at least 0, got nan"),
        (
            lambda m: list(evaluate_batches(m, X, Y, [], eps=8.0)),
            r"evaluate: expected eps in \[0, 1\] .* did you mean 8/255",
        ),
        (
            lambda m: list(evaluate_batches(m, X, Y, [], norm=NO_NORM)),
            "evaluate_curve: unknown norm 'l2', expected one of: Linf,",
        ),
        (lambda m: list(evaluate_batches(m, X, Y, [], batch_size=0)), "expected batch_size of at least 1, got 0"),
        (lambda m: list(evaluate_batches(m, X, Y, [], draws=0)), "expected draws of at least 1, got 0"),
        (lambda m: list(evaluate_batches(m, X, Y, [], eot_draws=0)), "expected eot_draws of at least 1, got 0"),
        (lambda m: list(evaluate_batches(m, X, Y, [], num_classes=0)), "expected num_classes of at least 1, got 0"),
        (
            lambda m: list(evaluate_batches(m, X, Y + 1, [], num_classes=3)),
            "evaluate: the model gives 3 classes, but y holds 3",
        ),
        (lambda m: list(evaluate_batches(m, X[:0], Y[:0], [])), "evaluate: expected at least one image, got none"),
        (
            lambda m: list(evaluate_batches(m, X, Y, [], index=torch.tensor([4]))),
            "expected index as int64 from 0 to 3, shape",
        ),
        (
            lambda m: list(evaluate_batches(m, X, Y, [], index=torch.tensor([-1]))),
            "expected index as int64 from 0 to 3, shape",
        ),
        (lambda m: list(evaluate_curve(m, X, Y, [(0.2, []), (0.1, [])])), "expected radii that rise, got 0.2, 0.1"),
        (lambda m: list(evaluate_curve(m, X, Y, [(0.2, []), (None, [])])), "expected radii that rise, got 0.2, None"),
        (lambda m: list(audit(m, X, Y, eps=0)), "audit: expected eps above 0, got 0"),
        (lambda m: list(audit(m, X, Y, eps=2)), r"audit: expected eps in \[0, 1\]"),
        (lambda m: list(audit(m, X, Y, queries=0)), "audit: expected queries of at least 1, got 0"),
        (lambda m: list(audit(m, X, Y, pool=X[0])), r"audit's pool: expected images of shape \(B, C, H, W\), got"),
        (lambda m: certify(m, X, sigma=math.inf), "certify: expected sigma above 0 and finite, got inf"),
        (lambda m: certify(m, X, sigma=0.1, n=0), "certify: expected n from 1 to 1000000, got 0"),
        (lambda m: certify(m, X, sigma=0.1, alpha=0), "certify: expected alpha between 0 and 1, got 0"),
        (lambda m: certify(m, X + 1, sigma=0.1), r"certify: expected images in \[0, 1\]"),
        (lambda m: certify(m, X, sigma=0.1, draws=Draws(0, Y[:2])), "certify: expected draws for 4 images"),
        (lambda m: predict(m, X[0], sigma=0.1), r"predict: expected images of shape \(B, C, H, W\)"),
        (lambda m: predict(m, X, sigma=0.1, n=0), "predict: expected n from 1 to 1000000, got 0"),
    ],
)
def test_entries_refuse_what_makes_no_sense(call: Callable, message: str, model: Plane):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("objective", "attack", "message"),
    [
        ("pgd", {"eps": -0.1}, "training on pgd: expected eps of at least 0, got -0.1"),
        ("pgd", {"steps": 0}, "training on pgd: expected steps of at least 1, got 0"),
        ("pgd", {"step_size": 0}, "training on pgd: expected step_size above 0, got 0"),
        ("fgsm", {"eps": 8}, r"training on fgsm: expected eps in \[0, 1\] .* got 8: did you mean 8/255?"),
        ("deepfool", {"norm": "L1"}, "training on deepfool: expected norm L2 or Linf, got 'L1'"),
        ("deepfool", {"overshoot": math.nan}, "training on deepfool: expected overshoot of at least 0, got nan"),
        ("trades", {}, "unknown objective 'trades', expected one of: standard, fgsm, pgd, deepfool"),
    ],
)
def test_training_refuses_the_same(objective: str, attack: dict, message: str, model: Plane):
    settings = TrainSettings(objective=objective, attack=attack, epochs=1, validation=0.25)
    with pytest.raises(ValueError, match=message):
        list(fit(model, (255 * X).byte(), Y, settings, seed=0, device=CPU))


def test_training_refuses_labels_without_a_class(model: Plane):
    with pytest.raises(ValueError, match="the model gives 3 classes, but the dataset has 4"):
        list(fit(model, (255 * X).byte(), Y + 1, TrainSettings(epochs=1, validation=0.25), seed=0, device=CPU))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"momentum": 1.0}, "expected momentum of at least 0 and below 1, got 1.0"),
        ({"momentum": math.nan}, "expected momentum of at least 0 and below 1, got nan"),
        ({"weight_decay": -0.1}, "expected weight_decay of at least 0, got -0.1"),
        ({"weight_decay": math.inf}, "expected weight_decay of at least 0 and finite, got inf"),
        ({"learning_rate": math.inf}, "expected learning_rate above 0 and finite, got inf"),
        ({"epochs": 1.5}, "expected epochs of type int, got 1.5"),
        ({"crop": True}, "expected crop of type int, got True"),
        ({"optimizer": "rmsprop"}, "unknown optimizer 'rmsprop', expected one of: sgd, adam"),
        ({"keep": "first"}, "unknown keep 'first', expected one of: best, last"),
        ({"validation_norm": "L7"}, "unknown validation_norm 'L7', expected one of: Linf, L2, L1"),
        ({"validation_eps": math.nan}, "expected validation_eps of at least 0, got nan"),
    ],
)
def test_settings_that_make_no_sense(given: dict, message: str):
    with pytest.raises((ValueError, TypeError)) as error:
        TrainSettings(**given)
    assert str(error.value) == message


def test_radii_in_l2_may_be_wider_than_1():
    assert TrainSettings(validation_norm="L2", validation_eps=2.0).validation_eps == 2.0
    with pytest.raises(ValueError, match="did you mean 2/255"):
        TrainSettings(validation_eps=2.0)
