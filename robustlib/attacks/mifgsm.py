"""Momentum iterative FGSM: steps by the sign of the gradients so far, which carry over better to other networks."""

from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.inference.confirm import settled, wrong
from robustlib.inference.gradients import climb
from robustlib.input_checks import checked
from robustlib.losses import LossName, find_loss
from robustlib.norms import ascent, per_example, project, size
from robustlib.rng import Draws


@checked
def mifgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Literal["Linf"] = "Linf",
    eps: float = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: LossName = "ce",
    draws: Draws | None = None,
) -> Tensor:
    """Momentum iterative FGSM, Dong et al. 2018, https://arxiv.org/abs/1710.06081, for Linf.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).
    eps, step_size: in units of x; the step is eps / steps where none is given.
    decay: share of the momentum that is kept from step to step, the paper's mu. At 0 it is FGSM in small steps.
    An image is done with as soon as it is misclassified. Deterministic: `draws` is not used.
    Returns x_adv, shaped like x, in the box and the eps-ball.
    """
    objective = find_loss(loss)
    step = eps / steps if step_size is None else step_size
    x_adv, momentum = x, torch.zeros_like(x)
    found, live = x.clone(), torch.arange(len(x), device=x.device)
    for _ in range(steps):
        logits, _, slope = climb(model, x_adv, objective, y)
        if (fell := settled(model, x_adv, y, wrong(logits, y))).any():
            found[live[fell]] = x_adv[fell]
            live, x, y, x_adv, slope, momentum = (rows[~fell] for rows in (live, x, y, x_adv, slope, momentum))
            if len(live) == 0:
                break
        # Gradients weigh alike, also those of confident images, of which few digits are left.
        steepness = size(slope, "L1").clamp_min(torch.finfo(slope.dtype).tiny)
        momentum = decay * momentum + slope / per_example(steepness, slope)
        x_adv = x_adv + step * ascent(momentum, norm)
        x_adv = (x + project(x_adv - x, eps, norm)).clamp(0, 1)
    found[live] = x_adv
    return found
