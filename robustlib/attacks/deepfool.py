"""DeepFool: the nearest boundary of a network taken for linear, again and again."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.steps import Phase, Rows, search_ball
from robustlib.input_checks import checked
from robustlib.losses import misclassified, other_classes
from robustlib.norms import ascent, dual_size, per_example, size
from robustlib.rng import Draws


@dataclass(kw_only=True)
class Run(Rows):
    """Where each example is. ranked: its classes, the true one first.  moved: the steps so far.  logits: of x_adv."""

    ranked: Tensor
    moved: Tensor
    logits: Tensor


def gaps(logits: Tensor, ranked: Tensor) -> Tensor:
    """Logits of the ranked classes but the first, less that of the first, (B, K-1)."""
    chosen = logits.gather(1, ranked)
    return chosen[:, 1:] - chosen[:, :1]


def step_to_boundary(gap: Tensor, slope: Tensor, norm: Norm) -> Tensor:
    """The shortest step over the nearest of the linearised boundaries between class 0 of the ranking and the others."""
    steepness = dual_size(slope.flatten(0, 1), norm).reshape(gap.shape).clamp_min(1e-12)
    distance, nearest = (gap.abs() / steepness).min(1)
    direction = slope[torch.arange(len(slope), device=slope.device), nearest]
    # 1e-4, as in the authors' code, carries the point over a boundary on which it lies exactly.
    return per_example(distance + 1e-4, direction) * ascent(direction, norm)


@checked
def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Literal["L2", "Linf"] = "L2",
    eps: float | None = None,
    steps: int = 50,
    classes: int = 10,
    overshoot: float = 0.02,
    draws: Draws | None = None,
) -> Tensor:
    """DeepFool, Moosavi-Dezfooli et al. 2016, https://arxiv.org/abs/1511.04599, for L2 and Linf.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,); a misclassified image is returned as it is.
    classes: how many of the classes ranked first by the clean logits are tried; their ranking stays fixed.
    eps: None returns the boundary point wherever it lies; with a radius, images whose boundary point lies outside the
    ball are returned as they came. Deterministic: `draws` is not used. Returns x_adv, shaped like x.
    """
    oracle = as_oracle(model)
    clean = oracle.logits(x)
    # The true class first, also where only the copy of a model ranks another before it.
    ranked = torch.cat([y[:, None], other_classes(clean, y)], 1)[:, :classes]

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        if phase.kind != "first":
            run.logits = oracle.logits(run.x_adv)
        return misclassified(run.logits, run.y)

    def move(oracle: Oracle, run: Run, phase: Phase) -> None:
        if phase.kind == "last":
            return
        # Rounding turns gradients little: how far a boundary is, is asked of the finer logits.
        slopes = oracle.gradients(run.x_adv, gaps, run.ranked)
        step = step_to_boundary(gaps(run.logits, run.ranked), slopes, norm)
        run.moved = run.moved + step.to(run.moved)  # a model in half precision has gradients in float32
        run.x_adv = (run.x + (1 + overshoot) * run.moved).clamp(0, 1)

    run = Run(x=x, y=y, x_adv=x, ranked=ranked, moved=torch.zeros_like(x), logits=clean)
    phases = [Phase("first"), *[Phase()] * (steps - 1), Phase("last")]
    x_adv = search_ball(oracle, run, ask, move, phases, oracle.is_adversarial)
    if eps is None:
        return x_adv
    return torch.where(per_example(size(x_adv - x, norm) <= eps, x), x_adv, x)
