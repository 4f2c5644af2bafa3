"""Attacks that do nothing are told from sound ones that found nothing, and from those that chance beats."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.checks.idle_attacks import noise_nearer, unmoved
from robustlib.checks.thresholds import CheckResult
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.outcome import Outcome, join
from tests.robustlib.checks.test_evaluation_checks import Threshold, images, outcome

CPU = torch.device("cpu")


def examined(net: nn.Module, x: Tensor, y: Tensor, name: str, norm: Any, eps: float | None, **params: Any):
    """What an evaluation of the net by this attack leaves, and what is found of the attack."""
    attack = partial(ATTACKS[name], norm=norm, eps=eps, **params)
    ready = make_ready(net, x, 10, CPU)
    assert ready.replicas is not None
    batches = evaluate_batches(net, x, y, [(name, attack)], norm=norm, eps=eps, ready=ready)
    found = join([batch.outcome for batch in batches])
    search = ready.replicas.for_radius(eps)
    return found, unmoved(search, x, y, found, [attack], norm=norm, eps=eps, seed=0), ready.replicas.exact


# Of no use, and yet within the ranges that are taken: see robustlib.arguments.
IDLE = [
    ("cw", None, {"initial_const": 1e-30, "steps": 10}),
    ("cw", 0.5, {"initial_const": 1e-30, "steps": 10}),
    ("fmn", None, {"step_size": 1e-30, "steps": 10}),
    ("fmn", 0.5, {"step_size": 1e-30, "steps": 10}),
    ("pgd", 0.5, {"step_size": 1e-30, "random_start": False}),
]


@pytest.mark.parametrize(("name", "eps", "params"), IDLE, ids=[f"{name} {eps}" for name, eps, _ in IDLE])
def test_an_attack_that_moves_nothing_fails(name: str, eps: float | None, params: dict[str, Any], net: nn.Module, test):
    x, y = test[0][:40], test[1][:40]
    found, said, exact = examined(net, x, y, name, "L2", eps, **params)
    assert found.success.mean() < 0.1  # all stands that is right as it is
    assert (said.value, said.verdict, len(said.examples)) == (1, "fail", 8)
    if eps is None:
        beaten = noise_nearer(exact, x, y, found, norm="L2", seed=0)
        assert beaten.value is not None and beaten.value > 0.5 and beaten.verdict == "fail"


SOUND = [
    ("fmn", "L2", {}),
    ("deepfool", "Linf", {}),
    ("fab", "L1", {"steps": 20}),
    ("hopskipjump", "L2", {"queries": 200}),
    ("fgsm", "Linf", {}),
]


@pytest.mark.parametrize(("name", "norm", "params"), SOUND, ids=[name for name, *_ in SOUND])
def test_a_sound_attack_may_find_nothing(name: str, norm: str, params: dict[str, Any], net: nn.Module, test):
    found, said, _ = examined(net, test[0][:40], test[1][:40], name, norm, 1e-5, **params)
    assert not (found.success & (found.broken_by == name)).any()
    assert (said.value, said.verdict) == (0, "pass")


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "Linf"), ("fmn", "L2"), ("fmn", "L1")])
def test_no_chance_is_nearer_than_a_sound_attack(name: str, norm: Any, net: nn.Module, test):
    x, y = test[0][:40], test[1][:40]
    found, said, exact = examined(net, x, y, name, norm, None)
    nearer = noise_nearer(exact, x, y, found, norm=norm, seed=0)
    assert (nearer.value, said.value, said.note) == (0, None, "it found adversarial images, so it moves images")


def test_few_images_tell_nothing(net: nn.Module, test):
    x, y = test[0][:4], test[1][:4]
    _, said, _ = examined(net, x, y, "fmn", "L2", 0.5, step_size=1e-30, steps=2)
    assert (said.value, said.verdict, said.note) == (None, "pass", "too few images are robust to tell")


def nearer(model: nn.Module, found: Outcome) -> CheckResult:
    """All images at 100 of 255, of class 0."""
    n = len(found.index)
    return noise_nearer(model, images(*[100.0] * n), torch.zeros(n, dtype=torch.long), found, norm="Linf", seed=0)


def test_random_points_are_no_farther_than_the_attack_came():
    """The boundary lies 10 of 255 above: found at 11 no point within is beyond it by more than a twentieth of them;
    found at 80, of three points at 20, 40 and 80 at most, 1 - 0.75 * 0.625 * 0.5625 of the images have one beyond.
    """
    many = outcome([True] * 4)
    columns = {name: np.repeat(values, 16) for name, values in vars(many).items()}
    columns["index"] = np.arange(64)
    near = Outcome(**columns | {"distance": np.full(64, 11 / 255)})
    far = Outcome(**columns | {"distance": np.full(64, 80 / 255)})
    share = nearer(Threshold(110), near).value
    assert share is not None and share < 0.2
    found = nearer(Threshold(110), far)
    assert found.verdict == "fail" and found.value == pytest.approx(1 - 0.75 * 0.625 * 0.5625, abs=0.15)
    # Where nothing was found any image is near enough: below 110 lies less than half of the box.
    nothing = {"success": np.zeros(64, bool), "distance": np.full(64, np.nan), "broken_by": np.full(64, "")}
    stands = Outcome(**columns | nothing)
    assert nearer(Threshold(110), stands).verdict == "fail"
    assert nearer(Threshold(1000), stands).value == 0  # there is no other class


def test_an_image_or_two_are_chance():
    stands = outcome([False, False])
    assert nearer(Threshold(100.001), stands).value == 0
