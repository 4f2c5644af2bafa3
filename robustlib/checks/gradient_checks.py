"""Checks of the gradient against the loss: they tell a masked gradient from a small one."""

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.checks.thresholds import CheckResult, check_result
from robustlib.inference.gradients import pull
from robustlib.inference.model_modes import copied
from robustlib.losses import margin
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.model_calls import ask
from robustlib.norms import ascent_step, draw_in_ball
from robustlib.rng import Draws

TINY = 1e-6  # of an image's range: a difference in float64 over which a smooth loss is a straight line
SHARE = 0.1  # of the rise that the gradient promises which must come
NEAR = 0.1  # by which share slope and gradient may differ


def margin_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The margin, shape (B,), and its gradient by the images. Raises ValueError where there is none."""
    _, values, slopes = pull(model, x, lambda logits, y: margin(logits, y)[:, None], y)
    return values[:, 0], slopes[:, 0]


@torch.no_grad()
def margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return margin(ask(model, x), y)


def rises(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, step: float) -> tuple[Tensor, Tensor]:
    """What a step along the gradient raises the margin by, and what the gradient promises; shape (B,)."""
    before, slope = margin_and_gradient(model, x, y)
    there = (x + ascent_step(x, slope, step, norm)).clamp(0, 1)
    promised = ((there - x) * slope).flatten(1).sum(1)
    return margins(model, there, y) - before, promised


def slope(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, *, norm: Norm, eps: float) -> CheckResult:
    """A step of a tenth of the radius along the gradient must raise the margin."""
    gained, promised = as_many_as_fit(lambda n: rises(model, x[:n], y[:n], norm, eps / 10), len(x))
    bad = ~(gained > SHARE * promised) | ~(promised > 0)
    return check_result("slope", bad.float().mean().item(), examples=index[: len(bad)][bad].tolist())


def backward_pass(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, *, norm: Norm) -> CheckResult:
    """The gradient must be the slope of the loss: a backward pass of its own, or a step in the forward pass, is not."""
    try:
        fine = copied(model).double()
        gained, promised = as_many_as_fit(lambda n: rises(fine, x[:n].double(), y[:n], norm, TINY), len(x))
    except (RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        # A model that holds float32 numbers, or cannot be copied, cannot be looked at so finely.
        return check_result(
            "backward-pass", None, f"the model does not run in float64: {str(error).splitlines()[0][:120]}"
        )
    bad = ~((gained - promised).abs() <= NEAR * promised.abs())
    bad |= promised == 0
    return check_result("backward-pass", bad.float().mean().item(), examples=index[: len(bad)][bad].tolist())


def loss_landscape(model: nn.Module, x: Tensor, y: Tensor, index: Tensor, *, norm: Norm, eps: float) -> CheckResult:
    """How much noise of the attack's size moves the margin: on a rugged one, single gradients lead nowhere."""
    before = as_many_as_fit(lambda n: margins(model, x[:n], y[:n]), len(x))
    x, y, index = x[: len(before)], y[: len(before)], index[: len(before)]
    point = (x + draw_in_ball(x, eps, norm, Draws(0, index), "checks/landscape")).clamp(0, 1)
    change = (margins(model, point, y) - before).abs().mean() / before.abs().mean().clamp_min(1e-12)
    return check_result("loss-landscape", change.item())
