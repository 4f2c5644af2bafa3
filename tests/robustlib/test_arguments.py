"""What makes no sense is refused before anything is run, by every attack and entry alike, and switches nothing off."""

import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import NORMS, RANGES, check_value
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.random_search import noise
from robustlib.attacks.types import as_stage
from robustlib.audit.audit import audit
from robustlib.defences import DEFENCES
from robustlib.defences.smoothing import certify, predict
from robustlib.evaluation.batches import evaluate_batches, evaluate_curve
from robustlib.input_checks import checked, unchecked
from robustlib.rng import Draws
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

CPU = torch.device("cpu")
CLASSES, N = 3, 4
# A defence may have an attack's name, as `noise` does.
DEFENDED = {f"defence {name}": defence for name, defence in DEFENCES.items()}
OTHERS = {"certify": certify, "predict": predict, "audit": audit, "evaluate_curve": evaluate_curve, "fit": fit}
KNOWN: dict[str, Callable[..., Any]] = ATTACKS | ENSEMBLES | DEFENDED | OTHERS


class Plane(nn.Module):
    """A linear network of three classes that counts its passes."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.layer = nn.Linear(64, classes)
        torch.manual_seed(0)
        nn.init.normal_(self.layer.weight, std=0.1)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.layer(x.flatten(1))


@pytest.fixture
def model() -> Plane:
    return Plane().eval()


X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])
NO_NORM: Any = "l2"


def numeric(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that are numbers, whatever else they may be."""
    known = as_stage(function).params
    return {name: p for name, p in known.items() if {int, float} & {p.annotation, *get_args(p.annotation)}}


def registered() -> list[tuple[str, str]]:
    return [(name, param) for name, function in KNOWN.items() for param in numeric(function)]


def options(name: str, **given: Any) -> dict[str, Any]:
    """Of an attack that needs a surrogate, with one."""
    return given | ({"surrogate": Plane()} if name == "transfer" else {})


def run(name: str, model: nn.Module, given: dict[str, Any]) -> None:
    if name in ATTACKS:
        ATTACKS[name](model, X, Y, **given)
    else:
        ENSEMBLES[name](**given) if name in ENSEMBLES else DEFENDED[name](model, **given)


@pytest.mark.parametrize(("name", "param"), registered())
def test_every_number_has_its_range_and_every_default_lies_in_it(name: str, param: str):
    known = numeric(KNOWN[name])[param]
    assert param in RANGES
    if known.default is not known.empty:
        check_value(name, param, known.annotation, known.default)


def test_settings_have_their_ranges_too():
    for name, known in inspect.signature(TrainSettings).parameters.items():
        assert name in RANGES or not {int, float} & {known.annotation, *getattr(known.annotation, "__args__", ())}


# What 0 does not switch off: a radius or a margin of none, a shift of none.
MAY_BE_ZERO = {"eps", "confidence", "overshoot", "decay", "seed"}
MAY_BE_NEGATIVE = {"seed"}


def bad_numbers() -> list[tuple[str, str, Any]]:
    found = []
    for name, param in registered():
        if name in OTHERS or name == "defence dropout":  # which has a message of its own
            continue
        found += [(name, param, value) for value in (math.nan, math.inf, -math.inf, True, "1")]
        found += [(name, param, -1)] if param not in MAY_BE_NEGATIVE else []
        found += [(name, param, 0)] if param not in MAY_BE_ZERO else []
        if float not in (kind := numeric(KNOWN[name])[param].annotation, *get_args(kind)):
            found.append((name, param, 2.5))
    return found


@pytest.mark.parametrize(("name", "param", "value"), bad_numbers())
def test_a_number_out_of_its_range_is_refused(name: str, param: str, value: Any, model: Plane):
    given = options(name, **{param: value})
    with pytest.raises((ValueError, TypeError)) as error:
        run(name, model, given)
    assert f": expected {param} " in str(error.value) and f", got {value!r}" in str(error.value)
    assert model.passes == 0


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("cw", {"initial_const": 0}, "cw: expected initial_const above 0, got 0"),
        ("cw", {"step_size": math.inf}, "cw: expected step_size above 0 and finite, got inf"),
        ("cw", {"norm": "Linf"}, "cw: expected norm L2, got 'Linf': fmn and fab take all"),
        ("deepfool", {"norm": "L1"}, "deepfool: expected norm L2 or Linf, got 'L1': fmn and fab take all"),
        ("deepfool", {"classes": 1}, "deepfool: expected classes of at least 2, got 1"),
        ("fab", {"classes": 1}, "fab: expected classes of at least 2, got 1"),
        ("fab-t", {"targets": 0}, "fab_targeted: expected targets of at least 1, got 0"),
        ("fmn", {"radius_step": 1.0}, "fmn: expected radius_step between 0 and 1, got 1.0"),
        ("square", {"share": 1.5}, "square: expected share above 0 and at most 1, got 1.5"),
        ("pgd", {"norm": "linf"}, "pgd: unknown norm 'linf', expected one of: Linf, L2, L1"),
        ("pgd", {"loss": "CE"}, "pgd: unknown loss 'CE', expected one of: ce, margin, dlr"),
        ("pgd", {"steps": 2.5}, "pgd: expected steps of type int, got 2.5"),
        ("pgd", {"eps": "8/255"}, "pgd: expected eps of type float | torch.Tensor, got '8/255'"),
        ("pgd", {"eps": 8}, "pgd: expected eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?"),
        ("corruption", {"severity": 6}, "corruption: expected severity from 1 to 5, got 6"),
        ("spsa", {"queries": 65}, "spsa: expected queries of at least 66, got 65: it would not come to a step"),
        ("nes", {"queries": 29, "samples": 29}, "nes: expected queries of at least 30, got 29: it would not"),
        ("hopskipjump", {"queries": 37}, "hopskipjump: expected queries of at least 38, got 37: it would not"),
        ("autoattack", {"version": "best"}, "autoattack: unknown version 'best', expected one of: standard, plus, rand"),
        ("defence median", {"size": 4}, "median: expected an odd size of at least 1, got 4"),
    ],
)  # fmt: skip
def test_the_message_says_what_was_expected_and_what_came(name: str, given: dict, message: str, model: Plane):
    with pytest.raises((ValueError, TypeError)) as error:
        run(name, model, given)
    assert str(error.value).startswith(message)


@pytest.mark.slow
def test_a_radius_of_none_and_radii_wider_than_the_box_are_taken(model: Plane):
    for name in ("pgd", "fgsm", "apgd-ce", "square", "noise", "transfer", "spsa"):
        found = ATTACKS[name](model, X, Y, **options(name, eps=0))
        torch.testing.assert_close(found, X, rtol=0, atol=0)
    pgd(model, X, Y, norm="L2", eps=100.0)
    pgd(model, X, Y, norm="L1", eps=100.0)


FEWEST = [("spsa", 66, {}), ("spsa", 4, {"samples": 1}), ("nes", 52, {}), ("hopskipjump", 38, {})]


@pytest.mark.parametrize(("name", "queries", "given"), FEWEST)
def test_with_the_fewest_queries_an_attack_comes_to_a_step(name: str, queries: int, given: dict):
    """A step and all that it needs take just these, or for HopSkipJump, whose step may succeed at once, nearly so."""

    class Corner(Plane):
        """Misclassified only far from a grey image: what HopSkipJump makes up to begin from is."""

        def forward(self, x: Tensor) -> Tensor:
            far = (x - 0.5).abs().flatten(1).mean(1, keepdim=True) - 0.1
            return torch.cat([-far, far], 1)

    x, y, spent = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0]), torch.zeros(1, dtype=torch.int64)
    ATTACKS[name](Corner(), x, y, eps=0.01, queries=queries, spent=spent, **given)
    assert spent == queries if name != "hopskipjump" else 14 + 10 < spent <= queries
    with pytest.raises(ValueError, match=f"expected queries of at least {queries}"):
        ATTACKS[name](Corner(), x, y, eps=0.01, queries=queries - 1, **given)
    first_step = ATTACKS[name].first_step
    assert first_step is not None and first_step(ATTACKS[name].defaults | given) == queries


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 2 * X}, ValueError, r"expected images in \[0, 1\], got values from 0.* to 1.*: leave normalisation to"),
    ({"x": X - 0.5}, ValueError, r"expected images in \[0, 1\], got values from -0.* to 0"),
    ({"x": X.where(X < 0.9, math.nan)}, ValueError, r"expected images in \[0, 1\], got values from nan to nan"),
    ({"x": (255 * X).byte()}, TypeError, r"expected images as floats in \[0, 1\], got torch.uint8: divide them by 255"),
    ({"x": X.long()}, TypeError, r"expected images as floats in \[0, 1\], got torch.int64$"),
    ({"x": X.numpy()}, TypeError, r"expected images as a tensor of shape \(B, C, H, W\), got ndarray"),
    ({"x": X[0]}, ValueError, r"expected images of shape \(B, C, H, W\), got \(1, 8, 8\)"),
    ({"y": Y.float()}, TypeError, r"expected y as a tensor of classes, torch.int64, got torch.float32"),
    ({"y": Y.int()}, TypeError, r"expected y as a tensor of classes, torch.int64, got torch.int32"),
    ({"y": [0, 1, 2, 0]}, TypeError, r"expected y as a tensor of classes, torch.int64, got list"),
    ({"y": Y[:3]}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(3,\)"),
    ({"y": Y.repeat(2)}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(8,\)"),
    ({"y": Y[:, None]}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(4, 1\)"),
    ({"y": Y - 1}, ValueError, r"expected classes of at least 0 in y, got -1"),
    ({"y": torch.full_like(Y, -100)}, ValueError, r"expected classes of at least 0 in y, got -100"),
    ({"y": Y.to("meta")}, ValueError, r"expected y on the images' device, cpu, got meta"),
    ({"draws": Draws(0, torch.arange(3))}, ValueError, r"expected draws for 4 images, shape \(4,\), got \(3,\)"),
    ({"draws": 5}, TypeError, r"expected draws of type Draws, got int"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("name", ATTACKS)
def test_images_and_labels_that_do_not_fit_are_refused(name: str, wrong: dict, error: type, message: str, model: Plane):
    given = options(name, x=X, y=Y) | wrong
    with pytest.raises(error, match=message):
        ATTACKS[name](model, given.pop("x"), given.pop("y"), **given)
    assert model.passes == 0


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("clean", "corruption")])
def test_labels_that_the_model_has_no_class_for_are_refused(name: str, model: Plane):
    with pytest.raises(ValueError, match="the model gives 3 classes, but y holds 3: expected a logit for every label"):
        ATTACKS[name](model, X, Y + 1, **options(name))
    assert model.passes <= 1 and not model._forward_hooks


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"])
def test_each_examples_own_radius_is_checked(name: str, model: Plane):
    good = torch.tensor([0.0, 0.1, 0.2, 1.0])
    loss = {"loss": "ce"} if name == "apgd-t" else {}
    if name != "apgd-dlr" and name[0] != "f":
        ATTACKS[name](model, X, Y, eps=good, **loss)
    for value, words in ((-0.1, "of at least 0, got -0.1"), (math.nan, "of at least 0"), (math.inf, "of at least 0 and fin"),
                         (1.5, r"in \[0, 1\]")):  # fmt: skip
        with pytest.raises(ValueError, match=f"expected eps {words}"):
            ATTACKS[name](model, X, Y, eps=good.clone().index_fill_(0, torch.tensor(1), value))
    for radii in (good[:3], good[:, None]):
        with pytest.raises(ValueError, match=r"expected eps for 4 images, shape \(4,\), got "):
            ATTACKS[name](model, X, Y, eps=radii)
    with pytest.raises(TypeError, match="expected eps of type float, got Tensor"):
        fgsm(model, X, Y, eps=good)  # pyright: ignore[reportArgumentType]


def test_a_start_has_the_images_shape(model: Plane):
    with pytest.raises(
        ValueError, match=r"pgd: expected start of the images' shape \(4, 1, 8, 8\), got \(3, 1, 8, 8\)"
    ):
        pgd(model, X, Y, start=X[:3])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "corruption"])
def test_no_rows_are_none(name: str, model: Plane):
    assert ATTACKS[name](model, X[:0], Y[:0], **options(name)).shape == (0, 1, 8, 8)


def test_checking_costs_no_pass_and_leaves_no_trace(model: Plane):
    ATTACKS["noise"](model, X, model(X).argmax(1), eps=0.0, queries=2)
    assert model.passes == 1 + 2 and not model._forward_hooks
    for attack in (pgd, noise, certify):
        assert pickle.loads(pickle.dumps(attack)) is attack
        assert attack.__module__ in (
            "robustlib.attacks.pgd",
            "robustlib.attacks.random_search",
            "robustlib.defences.smoothing",
        )
    assert pgd.__name__ == "pgd" and [*inspect.signature(pgd).parameters][:4] == ["model", "x", "y", "norm"]
    mine = partial(pgd, steps=3)
    assert unchecked(pgd) is not pgd and unchecked(mine) is mine and unchecked(unchecked(pgd)) is unchecked(pgd)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        pgd(model, X)  # pyright: ignore[reportCallIssue]


def test_an_attack_of_tomorrow_is_checked_by_the_names_of_its_parameters(model: Plane):
    @checked
    def push(model: nn.Module, x: Tensor, y: Tensor, *, steps: int = 3, wind: float = 1.0) -> Tensor:
        return x

    assert push(model, x=X, y=Y, wind=-3.0) is X
    with pytest.raises(ValueError, match="push: expected steps of at least 1, got 0"):
        push(model, X, Y, steps=0)
    with pytest.raises(ValueError, match="push: expected wind to be finite, got inf"):
        push(model, X, Y, wind=math.inf)


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


def test_norms_are_those_that_there_are():
    assert NORMS == ("Linf", "L2", "L1")
    limited = {name: attack.norms for name, attack in ATTACKS.items() if attack.norms not in ((), NORMS)}
    assert limited == {"cw": ("L2",), "deepfool": ("L2", "Linf"), "mifgsm": ("Linf",)}


def test_a_model_in_torchscript_is_attacked_and_one_radius_may_be_a_tensor():
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval(), torch.rand(8, 3, 4, 4)
    y = net(x).argmax(1)
    expected = ATTACKS["pgd"](net, x, y, eps=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        scripted = torch.jit.trace(net, x)
    torch.testing.assert_close(ATTACKS["pgd"](scripted, x, y, eps=torch.tensor(0.1, dtype=torch.float64)), expected)
