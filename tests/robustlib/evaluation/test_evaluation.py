"""The evaluation by one call: on a linear model, whose distance to its boundary is known, and beside the batches."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.evaluation import evaluate
from robustlib.evaluation.batches import evaluate_curve
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


@pytest.mark.parametrize(
    "attack, options, message",
    [
        ("pdg", {}, "unknown attack 'pdg', expected one of: clean, fgsm, pgd"),
        ("deepfool", {"norm": "L1"}, "norm"),
        ("pgd", {"eps": 8}, "did you mean 8/255?"),
    ],
)
def test_what_it_does_not_take_is_refused(attack: str, options: dict, message: str, half_plane: nn.Module, points):
    x, y, _ = points
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        evaluate(half_plane, x, y, attack, **options)
