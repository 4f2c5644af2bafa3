"""Momentum iterative FGSM: steps by the sign of the gradients so far, which carry over better to other networks."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.steps import Phase, Rows, search_ball
from robustlib.input_checks import checked
from robustlib.losses import LossName, find_loss, misclassified
from robustlib.norms import ascent, per_example, project, size
from robustlib.rng import Draws


@dataclass(kw_only=True)
class Run(Rows):
    """Where each example's run is."""

    momentum: Tensor
    gradient: Tensor = field(init=False)


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
    oracle, objective = as_oracle(model), find_loss(loss)
    step = eps / steps if step_size is None else step_size

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        logits, _, run.gradient = oracle.value_and_grad(run.x_adv, objective, run.y)
        return misclassified(logits, run.y)

    def move(oracle: Oracle, run: Run, phase: Phase) -> None:
        # Gradients weigh alike, also those of confident images, of which few digits are left.
        steepness = size(run.gradient, "L1").clamp_min(torch.finfo(run.gradient.dtype).tiny)
        run.momentum = decay * run.momentum + run.gradient / per_example(steepness, run.gradient)
        x_adv = run.x_adv + step * ascent(run.momentum, norm)
        run.x_adv = (run.x + project(x_adv - run.x, eps, norm)).clamp(0, 1)

    run = Run(x=x, y=y, x_adv=x, momentum=torch.zeros_like(x))
    return search_ball(oracle, run, ask, move, [Phase()] * steps, oracle.is_done)
