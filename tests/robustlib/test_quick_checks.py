"""The checks that run with every evaluation, on a network of one pixel whose answers can be told by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.checks.quick import eight_bit, noise
from robustlib.outcome import Outcome

PLACES = [70, 80, 90, 100]


class Threshold(nn.Module):
    """Class 1 from this grey level (of 255) on, else class 0."""

    def __init__(self, level: float):
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1).sum(1) * 255 - self.level
        return torch.stack([-score, score], 1)


def outcome(success: list[bool]) -> Outcome:
    """All images of class 0, those that fell at a distance of a thousandth."""
    n = len(success)
    fell = np.array(success)
    columns: dict[str, Any] = {
        "index": np.array(PLACES[:n]),
        "label": np.zeros(n, np.int64),
        "clean_prediction": np.zeros(n, np.int64),
        "adversarial_prediction": fell.astype(np.int64),
        "success": fell,
        "distance": np.where(fell, 1e-3, np.nan),
        "broken_by": np.where(fell, "pgd", ""),
        "clean_correct": np.ones(n),
        "adversarial_correct": 1.0 - fell,
        "adversarial_survived": ~fell,
        "queries": np.full(n, -1),
    }
    return Outcome(**columns)


def images(*levels: float) -> Tensor:
    return (torch.tensor(levels) / 255).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "success, standing",
    [([True], [70]), ([False, True], [80]), ([True, True, True], [70, 80, 90]), ([True, False, True, True], [])],
)
def test_rounding_heals_an_image_nearer_to_the_level_below(success: list[bool], standing: list[int]):
    """At 100.3 of 255 an image is beyond a level of 100.2, and rounds to 100; at 100.7 it rounds to 101.

    One image alone is a case of its own: NumPy takes a tensor of one number for that number.
    """
    level = 100.3 if standing else 100.7
    x_adv, y = images(*[level] * len(success)), torch.zeros(len(success), dtype=torch.long)
    found = eight_bit(Threshold(100.2), x_adv, y, outcome(success))
    assert (found.value, found.examples) == (float(bool(standing)), tuple(standing))
    assert found.verdict == ("warn" if standing else "pass")


def test_no_image_was_broken():
    found = eight_bit(Threshold(100.2), images(3.0), torch.zeros(1, dtype=torch.long), outcome([False]))
    assert (found.value, found.verdict, found.note) == (None, "pass", "no image was broken")


@pytest.mark.parametrize("success, fell", [([False], [70]), ([True, False], [80]), ([False, False], [70, 80])])
def test_noise_finds_what_an_attack_missed(success: list[bool], fell: list[int]):
    """Below a level at the foot of the ball, every random point is of the other class."""
    x, y = images(*[50.0] * len(success)), torch.zeros(len(success), dtype=torch.long)
    found = noise(Threshold(0.0), x, y, outcome(success), "Linf", 10 / 255, 0)
    assert (found.value, found.verdict, found.examples) == (len(fell), "fail", tuple(fell))
    calm = noise(Threshold(100.0), x, y, outcome(success), "Linf", 10 / 255, 0)
    assert (calm.value, calm.verdict) == (0, "pass")
