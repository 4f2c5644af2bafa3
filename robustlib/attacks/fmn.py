"""Fast minimum-norm: PGD in a ball that shrinks while the image is misclassified and grows while it is not."""

import math

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.fab import within
from robustlib.inference.confirm import confirmed, starts, wrong
from robustlib.inference.gradients import climb
from robustlib.input_checks import checked
from robustlib.losses import margin
from robustlib.norms import TINY, ascent, dual_size, per_example, project, size
from robustlib.rng import Draws


@checked
def fmn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "L2",
    eps: float | None = None,
    steps: int = 100,
    step_size: float = 1.0,
    radius_step: float = 0.05,
    draws: Draws | None = None,
) -> Tensor:
    """Fast minimum-norm attack, Pintor et al. 2021, https://arxiv.org/abs/2102.12827, for Linf, L2 and L1.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,); a misclassified image is returned as it is.
    step_size: of the first step, in L2 whatever the norm; the last is a hundredth of it.
    radius_step: share by which the first step changes the ball's radius; the last changes it by a thousandth.
    eps: None returns the nearest misclassified image found; with a radius, images for which it lies outside the ball
    are returned as they came. Deterministic: `draws` is not used. Returns x_adv, shaped like x, in the box.
    """
    x_adv = x.clone()
    for net, live in starts(model, x, y):
        found, distance = approach(net, x[live], y[live], norm, steps, step_size, radius_step)
        x_adv[live] = within(x[live], found, distance, eps)
    return x_adv


def approach(
    model: nn.Module, x: Tensor, y: Tensor, norm: Norm, steps: int, step_size: float, radius_step: float
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found and its distance, infinite where none was."""
    x_adv = best = x
    distance = torch.full_like(x[:, 0, 0, 0], torch.inf)
    radius, widest = distance, size(x.maximum(1 - x), norm)
    for step in range(steps):
        moves, share = anneal(step_size, step_size / 100, step / steps), anneal(radius_step, 1e-3, step / steps)
        logits, gap, slope = climb(model, x_adv, margin, y)
        hit, how_far = wrong(logits, y), size(x_adv - x, norm)
        closer = how_far < distance
        nearer = confirmed(model, x_adv, y, hit & closer)
        hit = nearer | (hit & ~closer)
        best = torch.where(per_example(nearer, x), x_adv, best)
        distance = torch.where(nearer, how_far, distance)
        # Wider or narrower by a share; before an image is found, wider than to the linearised model's boundary. The
        # share and the 1e-4 are not the paper's there: they carry a point over a boundary on which it lies.
        linear = how_far + gap.abs() / dual_size(slope, norm).clamp_min(TINY) + 1e-4
        wider = torch.where(distance < torch.inf, radius, linear) * (1 + share)
        radius = torch.where(hit, distance.minimum(radius * (1 - share)), wider).minimum(widest)
        # Into the box first, then into the ball, which keeps it in the box. The paper's other order loses the part of
        # the radius that lies outside the box: in L2, half of the digits, with their black pixels, were never found.
        stepped = (x_adv + moves * ascent(slope, "L2")).clamp(0, 1)
        x_adv = (x + project_each(stepped - x, radius, norm)).clamp(0, 1)
    return best, distance


def anneal(first: float, last: float, progress: float) -> float:
    """From the first to the last along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def project_each(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """`project` onto a ball of each example's own radius, shape (B,): balls of one norm differ by their scale only."""
    scale = per_example(radius.clamp_min(TINY), delta)
    return project(delta / scale, 1.0, norm) * scale
