"""DeepFool: the nearest boundary of a network taken for linear, again and again."""

from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.apgd import other_classes
from robustlib.inference.batched_model import Engine, differentiate
from robustlib.inference.confirm import confirmed, wrong
from robustlib.input_checks import checked
from robustlib.model_calls import ask
from robustlib.norms import ascent, dual_size, per_example, size
from robustlib.rng import Draws


def gaps(logits: Tensor, ranked: Tensor) -> Tensor:
    """Logits of the ranked classes but the first, less that of the first, (B, K-1)."""
    chosen = logits.gather(1, ranked)
    return chosen[:, 1:] - chosen[:, :1]


def class_slopes(model: nn.Module, x: Tensor, ranked: Tensor) -> Tensor:
    """Gradients of the gaps, (B, K-1, C, H, W): of a copy in half precision where there is one. Rounding turns them by
    less than a hundredth; how far a boundary is, is asked of the finer logits.
    """
    quick = model.rougher[0] if isinstance(model, Engine) and model.rougher else model
    return differentiate(quick, x, gaps, ranked)[2]


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
    with torch.no_grad():
        clean = ask(model, x)
    # The true class first, also where only the copy of a model ranks another before it.
    ranked = torch.cat([y[:, None], other_classes(clean, y)], 1)[:, :classes]
    moved = torch.zeros_like(x)
    x_adv = x.clone()
    active = (~confirmed(model, x, y, wrong(clean, y))).nonzero().squeeze(1)
    logits = clean[active]
    for _ in range(steps):
        if len(active) == 0:
            break
        among, true = ranked[active], y[active]
        moved[active] += step_to_boundary(gaps(logits, among), class_slopes(model, x_adv[active], among), norm)
        there = x_adv[active] = (x[active] + (1 + overshoot) * moved[active]).clamp(0, 1)
        with torch.no_grad():
            logits = ask(model, there)
        going = ~confirmed(model, there, true, wrong(logits, true))
        active, logits = active[going], logits[going]
    if eps is None:
        return x_adv
    return torch.where(per_example(size(x_adv - x, norm) <= eps, x), x_adv, x)
