"""The checks that run with every evaluation, on networks of a pixel or a few whose answers can be told by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.audit.attack_plan import margin_gradient
from robustlib.checks.evaluation_checks import batch_independence, eight_bit, gradients, look_at_model, noise
from robustlib.checks.gradient_checks import backward_pass, slope
from robustlib.memory import out_of_memory
from robustlib.outcome import Outcome, check_classes

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
    assert (found.value, found.verdict, found.note) == (None, "pass", "no adversarial image was found")


@pytest.mark.parametrize("success, fell", [([False], [70]), ([True, False], [80]), ([False, False], [70, 80])])
def test_noise_finds_what_an_attack_missed(success: list[bool], fell: list[int]):
    """Below a level at the foot of the ball, every random point is of the other class."""
    x, y = images(*[50.0] * len(success)), torch.zeros(len(success), dtype=torch.long)
    found = noise(Threshold(0.0), x, y, outcome(success), "Linf", 10 / 255, 0)
    assert (found.value, found.verdict, found.examples) == (len(fell), "fail", tuple(fell))
    calm = noise(Threshold(100.0), x, y, outcome(success), "Linf", 10 / 255, 0)
    assert (calm.value, calm.verdict) == (0, "pass")


class Holds(nn.Module):
    """A linear model for which memory runs out from so many images on, in passes with a gradient or in all."""

    def __init__(self, too_many: int, *, with_gradient: bool, error: Exception):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        self.too_many, self.with_gradient, self.error = too_many, with_gradient, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= self.too_many and (x.requires_grad or not self.with_gradient):
            raise self.error
        return self.layer(x.flatten(1).to(self.layer.weight))


OUT = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
X = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("too_many", "with_gradient"), [(32, True), (7, False), (2, False)])
def test_memory_that_ran_out_is_no_verdict(too_many: int, with_gradient: bool, error: Exception):
    """Neither on a model without a gradient nor on one that takes no small batch: fewer images are looked at."""
    model = Holds(too_many, with_gradient=with_gradient, error=error)
    found = {one.name: one.verdict for one in look_at_model(model, X, randomised=False)}
    assert set(found) >= {"batch-independence", "gradient", "zero-gradient", "logits", "test-time"}
    assert set(found.values()) == {"pass"}
    index, y = torch.arange(64), model.layer(X.flatten(1)).argmax(1)
    ready = [slope(model, X, y, index, norm="L2", eps=0.1), backward_pass(model, X, y, index, norm="L2")]
    assert [one.value for one in ready] == [0, 0]  # a linear model: its gradient says it all
    gradient = margin_gradient(model, X)
    assert gradient is not None and len(gradient) == {32: 16, 7: 4, 2: 1}[too_many]
    assert check_classes(model, X, 3) == 3


@pytest.mark.parametrize("error", OUT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_what_memory_never_holds_is_tried_elsewhere(with_gradient: bool, error: Exception):
    """The error comes through as it is, so that the job goes to where there is more memory."""
    model = Holds(1, with_gradient=with_gradient, error=error)
    index, y = torch.arange(64), torch.zeros(64, dtype=torch.long)
    looks = [
        lambda: look_at_model(model, X, randomised=False),
        lambda: gradients(model, X, y),
        lambda: backward_pass(model, X, y, index, norm="L2"),
        lambda: margin_gradient(model, X),
    ]
    if not with_gradient:
        looks += [lambda: batch_independence(model, X, torch.zeros(64, 3)), lambda: check_classes(model, X, 3)]
    for look in looks:
        with pytest.raises(RuntimeError) as raised:
            look()
        assert out_of_memory(raised.value)
