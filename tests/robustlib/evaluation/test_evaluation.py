"""The evaluation by one call: on a linear model, whose distance to its boundary is known, and beside the batches."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.evaluation import evaluate
from robustlib.evaluation.batches import evaluate_curve
from robustlib.losses import cross_entropy
from robustlib.metrics import wilson


@pytest.fixture
def half_plane() -> nn.Module:
    """Class 1 where the mean of the pixels is above one half, with a margin of 8 times the mean's distance from it."""
    linear = nn.Linear(16, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[-4.0 / 16], [4.0 / 16]]).expand(2, 16))
        linear.bias.copy_(torch.tensor([2.0, -2.0]))
    return nn.Sequential(nn.Flatten(), linear).eval()


@pytest.fixture
def points() -> tuple[Tensor, Tensor, Tensor]:
    """Forty images, one colour each, their classes, and their distances from the boundary in Linf."""
    away = torch.linspace(0.01, 0.4, 20)
    level = torch.cat([0.5 + away, 0.5 - away])
    return level[:, None, None, None].expand(40, 1, 4, 4).clone(), (level > 0.5).long(), away.repeat(2)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["pgd", "fgsm", ["fgsm", "apgd-ce"], partial(ATTACKS["pgd"].run, steps=7)])
def test_accuracy_is_the_share_beyond_the_radius(attack, half_plane: nn.Module, points):
    x, y, away = points
    found = evaluate(half_plane, x, y, attack, norm="Linf", eps=0.1)
    fell = (away < 0.1).numpy()
    assert np.array_equal(found.outcome.success, fell)
    assert (found.clean_accuracy, found.robust_accuracy) == (1.0, 1 - fell.mean())
    assert found.interval == wilson(len(x) - fell.sum(), len(x))
    assert found.x_adv.shape == x.shape and ((found.x_adv - x).abs() <= 0.1 + 1e-6).all()
    assert torch.equal(half_plane(found.x_adv).argmax(1) != y, torch.from_numpy(fell))
    assert "" not in found.outcome.broken_by[fell] and "attack" not in found.outcome.broken_by
    assert found.verdict == "pass" and "noise" in {check.name for check in found.checks}


def test_without_a_radius_distances_are_found(half_plane: nn.Module, points):
    x, y, away = points
    found = evaluate(half_plane, x, y, "fmn", norm="Linf", eps=None)
    assert found.outcome.distance == pytest.approx(away.numpy(), rel=0.02, abs=1e-3)
    assert found.robust_accuracy == 0 and found.summary["distance_median"] == pytest.approx(0.205, rel=0.02)


def test_an_ensemble_is_its_attacks_in_turn(net: nn.Module, test):
    x, y = test[0][:40], test[1][:40]
    budget = {"norm": "Linf", "eps": 0.06}
    short = [(name, ATTACKS[name].given(**budget)) for name in ("fgsm", "pgd")]
    found = evaluate(net, x, y, ["fgsm", "pgd"], norm="Linf", eps=0.06, seed=3, batch_size=7)
    ((batch,),) = evaluate_curve(net, x, y, [(0.06, short)], norm="Linf", seed=3, batch_size=40)
    assert found.outcome.broken_by.tolist() == batch.outcome.broken_by.tolist()
    assert torch.equal(found.x_adv, batch.x_adv)
    assert {"fgsm", "pgd"} <= set(found.outcome.broken_by)


@pytest.mark.slow
def test_what_an_ensemble_put_in_place_of_a_loss_is_told(half_plane: nn.Module, points):
    """Targeted DLR needs four classes, and here are two."""
    x, y, _ = points
    found = evaluate(half_plane, x[::8], y[::8], "autoattack", norm="Linf", eps=0.1)
    expected = ENSEMBLES["autoattack"](norm="Linf", eps=0.1, classes=2).substitutions
    assert found.substitutions == expected and "apgd-t: margin loss" in expected[0]
    assert evaluate(half_plane, x, y, "pgd").substitutions == ()


def test_a_masked_gradient_is_not_trusted(half_plane: nn.Module, points):
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return half_plane((x * 255).round() / 255)

    x, y, _ = points
    found = evaluate(Rounded(), x, y, "pgd", norm="Linf", eps=0.1)
    assert found.robust_accuracy > 0.9 and found.verdict == "fail"


def test_a_randomised_model_is_scored_on_draws(points):
    class Coin(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = (torch.rand(len(x), 1) < 0.25).float()
            return torch.cat([heads, 1 - heads], 1) + 0 * x.flatten(1)[:, :2]

    x, _, _ = points
    found = evaluate(Coin(), x, torch.ones(len(x), dtype=torch.long), "clean", eps=0.0, draws=400)
    assert found.robust_accuracy == pytest.approx(0.75, abs=0.02) and "randomised" in found.mode


class Wavering(nn.Module):
    """A model that changes its answers a little from pass to pass."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.01 * torch.randn(len(x), 2)


@pytest.mark.parametrize("randomised", [False, True])
def test_an_attack_in_plain_pytorch_finds_what_ours_finds(randomised: bool, half_plane: nn.Module, points):
    def mine(model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, draws: object) -> Tensor:
        x_adv = x.clone().requires_grad_()
        cross_entropy(model(x_adv), y).sum().backward()
        assert x_adv.grad is not None
        return (x_adv + eps * x_adv.grad.sign()).clamp(0, 1)  # which still has a graph

    x, y, away = points
    found = evaluate(Wavering(half_plane) if randomised else half_plane, x, y, mine, norm="Linf", eps=0.1)
    assert np.array_equal(found.outcome.success, (away < 0.1).numpy())
    assert set(found.outcome.broken_by) == {"", "mine"} and found.verdict == "pass"


@pytest.mark.parametrize("randomised", [False, True])
def test_an_attack_may_write_into_its_images_but_not_leave_the_ball(randomised: bool, half_plane: nn.Module, points):
    def greedy(model: nn.Module, x: Tensor, y: Tensor, *, norm: str, eps: float, draws: object) -> Tensor:
        return x.add_(torch.where(y == 1, -3 * eps, 3 * eps)[:, None, None, None]).clamp_(0, 1)

    x, y, _ = points
    before = x.clone()
    with pytest.raises(RuntimeError, match=r"left its Linf ball of radius 0\.1"):
        evaluate(Wavering(half_plane) if randomised else half_plane, x, y, greedy, norm="Linf", eps=0.1)
    assert torch.equal(x, before)


@pytest.mark.parametrize("randomised", [False, True])
@pytest.mark.parametrize(
    "gives, error, message",
    [
        (lambda x: None, TypeError, r"attack 1 of 1 gives NoneType: expected images as a tensor of shape \("),
        (lambda x: x[:3], ValueError, r"attack 1 of 1 gives images of shape \(3, 1, 4, 4\), .*: expected shape \(\d"),
        (lambda x: x.double(), ValueError, r"torch.float64, on cpu: expected shape \(\d+, 1, 4, 4\), torch.float32"),
    ],
)
def test_what_no_attack_gives_is_refused(
    gives: Callable[[Tensor], Tensor],
    error: type[Exception],
    message: str,
    randomised: bool,
    half_plane: nn.Module,
    points,
):
    x, y, _ = points
    model = Wavering(half_plane) if randomised else half_plane
    with pytest.raises(error, match=message):
        evaluate(model, x, y, lambda model, x, y, *, draws: gives(x), norm="Linf", eps=0.1)


def test_a_function_by_the_name_of_an_attack_of_ours_is_told_apart(half_plane: nn.Module, points):
    def clean(model: nn.Module, x: Tensor, y: Tensor, **options: object) -> Tensor:
        return ATTACKS["pgd"](model, x, y, norm="Linf", eps=0.1)

    x, y, away = points
    found = evaluate(half_plane, x, y, clean, norm="Linf", eps=0.1)
    fell = (away < 0.1).numpy()
    assert found.outcome.broken_by.tolist() == np.where(fell, "own clean", "").tolist()
    assert (found.outcome.distance[fell] > 0).all() and found.clean_accuracy == 1


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["apgd-ce", ATTACKS["apgd-ce"], partial(ATTACKS["apgd-ce"], steps=20)])
def test_an_attack_of_ours_keeps_its_name(attack, half_plane: nn.Module, points):
    x, y, _ = points
    found = evaluate(half_plane, x, y, attack, norm="Linf", eps=0.1)
    assert set(found.outcome.broken_by) == {"", "apgd-ce"}


@pytest.mark.parametrize(
    "attack",
    [
        ENSEMBLES["autoattack"],
        ENSEMBLES["autoattack"].given(version="standard"),
        partial(ENSEMBLES["autoattack"].run, version="standard"),
    ],
)
def test_an_ensemble_may_be_given_as_it_is(attack, half_plane: nn.Module, points):
    x, y, _ = points
    found = evaluate(half_plane, x, y, attack, norm="Linf", eps=0.45)
    assert found.robust_accuracy == 0 and set(found.outcome.broken_by) == {"apgd-ce"}


def test_clean_images_are_in_no_ball_and_no_attack_stands_still(half_plane: nn.Module, points):
    x, y, _ = points
    found = evaluate(half_plane, x, 1 - y, "clean", device="cpu")
    assert found.robust_accuracy == 0 and set(found.outcome.broken_by) == {"clean"}
    assert evaluate(half_plane, x, y, "clean").verdict == "pass"


def test_inference_mode_is_named_where_it_takes_the_gradient(half_plane: nn.Module, points):
    x, y, _ = points
    for call in (partial(evaluate, half_plane, x, y, "pgd"), partial(ATTACKS["pgd"], half_plane, x, y)):
        with torch.inference_mode(), pytest.raises(ValueError, match=r"outside of torch.inference_mode\(\)"):
            call()


@pytest.mark.parametrize(
    "attack, error, message",
    [
        ([], ValueError, "evaluate: expected at least one attack, got none"),
        (None, TypeError, "evaluate: expected attacks by name or as functions, got NoneType"),
        (["pgd", 3], TypeError, "evaluate: expected attacks by name or as functions, got int"),
    ],
)
def test_what_is_no_attack_is_refused(attack, error: type[Exception], message: str, half_plane: nn.Module, points):
    x, y, _ = points
    with pytest.raises(error, match=message):
        evaluate(half_plane, x, y, attack)


@pytest.mark.parametrize(
    "attack, options, message",
    [
        ("pdg", {}, "unknown attack 'pdg', expected one of: clean, fgsm, pgd"),
        ("deepfool", {"norm": "L1"}, "norm"),
        ("pgd", {"eps": 8}, "evaluate: .*did you mean 8/255?"),
        ("pgd", {"draws": 0}, "evaluate: expected draws of at least 1, got 0"),
    ],
)
def test_what_it_does_not_take_is_refused(attack: str, options: dict, message: str, half_plane: nn.Module, points):
    x, y, _ = points
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        evaluate(half_plane, x, y, attack, **options)


class Standardised(nn.Module):
    """Divides each image by its deviation, which a black image has none of."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        return flat / flat.square().mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize("attack", ["clean", "noise", "pgd"])
def test_nan_is_no_class_beyond_the_first_images_too(attack: str):
    """The first class is the largest of logits that are NaN: two black images of it were right, and robust."""
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(), nn.Linear(64, 10)).eval()
    x = torch.rand(80, 1, 8, 8)
    y = model(x).argmax(1)
    x[70:72], y[70:72] = 0, 0
    with pytest.raises(ValueError, match="the model gives NaN logits for"):
        evaluate(model, x, y, attack, eps=2 / 255)
