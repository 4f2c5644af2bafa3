"""How often the model is asked in strict float32: about what its copy does not surely classify correctly, and no more."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.evaluation.multi_radius import curve
from robustlib.inference.batched_model import Count
from robustlib.inference.predict import predict, verdict
from robustlib.inference.replica import Replica
from robustlib.rng import Draws

DRIFT = 0.1


class Line(nn.Module):
    """Class 1 where the first pixel is above one half, by twice as much in the logits. rounding: of its logits."""

    def __init__(self, rounding: float = 0.0):
        super().__init__()
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0] - 0.5
        value = value + self.rounding * torch.where((x[:, 0, 0, 0] * 1000).round() % 2 == 0, 1, -1)
        return torch.stack([-value, value], 1)


def copies(precision: torch.dtype) -> tuple[Replica, Replica, Replica]:
    """The model, its copy in float32 and the one in half precision, whose passes are counted apart."""
    exact = Replica(Line(), sizes=(8,))
    fine = exact.but(net=Line(1e-4), drift=1e-3, judge=exact, count=Count())
    search = fine.but(net=Line(0.02), drift=DRIFT, in_float32=fine, precision=precision, count=Count())
    return exact, fine, search


def push(by: float):
    def attack(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        """Towards the other class, without looking at the model."""
        x = x.clone()
        x[:, 0, 0, 0] += by * (1 - 2 * y)
        return x

    return attack


# Margins of 0.8, 0.4, 0.02 (in doubt in half precision), and -0.02, -0.4 (wrong).
X = torch.tensor([0.1, 0.3, 0.49, 0.51, 0.7]).reshape(-1, 1, 1, 1)
Y = torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize(
    "precision, by_exact, by_fine",
    [
        # Clean: the last three; attacked by 0.3: of the first three, which fall but one.
        (torch.bfloat16, 3 + 2, 0),
        # The copy in float32 sees all clean images, and each attacked one once.
        (torch.float16, 2 + 2, 5 + 3),
    ],
)
def test_the_model_is_asked_about_errors_and_doubts_alone(precision: torch.dtype, by_exact: int, by_fine: int):
    exact, fine, search = copies(precision)
    found = attack_in_sequence(exact, X, Y, [push(0.3)], search=search)
    assert (exact.count.forwards, fine.count.forwards) == (by_exact, by_fine)
    assert found.broken_by.tolist() == [1, 0, 0, -1, -1]
    alone = attack_in_sequence(exact, X, Y, [push(0.3)])
    for name in ("x_adv", "prediction", "broken_by"):
        assert torch.equal(getattr(found, name), getattr(alone, name))


def test_a_copy_is_not_asked_about_what_it_has_claimed():
    exact, _, search = copies(torch.bfloat16)
    doubted = torch.tensor([False, False, True, False, True])
    assert torch.equal(verdict(exact, search, X, Y, doubted=doubted), predict(Line(), X))
    assert (exact.count.forwards, search.count.forwards) == (3, 3)  # of three images one is misclassified


def test_at_several_radii_the_outcome_is_the_models():
    exact, _, search = copies(torch.bfloat16)
    plan = [(eps, [push(eps)]) for eps in (0.05, 0.3)]
    found = curve(exact, X, Y, plan, norm="Linf", search=search)
    alone = curve(exact, X, Y, plan, norm="Linf")
    for mine, right in zip(found, alone, strict=True):
        assert torch.equal(mine.prediction, right.prediction) and torch.equal(mine.broken_by, right.broken_by)


def test_an_image_that_half_precision_alone_gets_right_counts_as_wrong():
    """By less than the drift: the model has the last word."""
    exact, _, search = copies(torch.bfloat16)
    x = torch.tensor([0.501]).reshape(1, 1, 1, 1)
    assert search(x).argmax(1).item() == 0 and exact(x).argmax(1).item() == 1
    assert attack_in_sequence(exact, x, Y[:1], [], search=search).broken_by.tolist() == [-1]
