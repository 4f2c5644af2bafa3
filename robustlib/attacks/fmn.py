"""Fast minimum-norm: PGD in a ball that shrinks while the image is misclassified and grows while it is not."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.minimum_norm import from_true_side, within
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.steps import Nearest, Phase, search_nearest
from robustlib.input_checks import checked
from robustlib.losses import margin, misclassified
from robustlib.norms import TINY, ascent, dual_size, per_example, project, size
from robustlib.rng import Draws


@dataclass(kw_only=True)
class Run(Nearest):
    """Where each example's search is. radius: of its ball.  widest: that of a ball that holds the box."""

    radius: Tensor
    widest: Tensor
    how_far: Tensor = field(init=False)
    wrong: Tensor = field(init=False)
    gap: Tensor = field(init=False)
    gradient: Tensor = field(init=False)


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

    def search(oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        return within(x, *approach(oracle, x, y, norm, steps, step_size, radius_step), eps)

    return from_true_side(as_oracle(model), x, y, search)


def approach(
    oracle: Oracle, x: Tensor, y: Tensor, norm: Norm, steps: int, step_size: float, radius_step: float
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found and its distance, infinite where none was."""

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        logits, run.gap, run.gradient = oracle.value_and_grad(run.x_adv, margin, run.y)
        run.wrong, run.how_far = misclassified(logits, run.y), size(run.x_adv - run.x, norm)
        return torch.where(run.wrong, run.how_far, torch.inf)

    def move(oracle: Oracle, run: Run, phase: Phase) -> None:
        moves, share = phase.numbers
        hit = run.nearer | (run.wrong & (run.how_far >= run.distance))  # but not one nearer that was not confirmed
        # Wider or narrower by a share; before an image is found, wider than to the linearised model's boundary. The
        # share and the 1e-4 are not the paper's there: they carry a point over a boundary on which it lies.
        linear = run.how_far + run.gap.abs() / dual_size(run.gradient, norm).clamp_min(TINY) + 1e-4
        wider = torch.where(run.distance < torch.inf, run.radius, linear) * (1 + share)
        run.radius = torch.where(hit, run.distance.minimum(run.radius * (1 - share)), wider).minimum(run.widest)
        # Into the box first, then into the ball, which keeps it in the box. The paper's other order loses the part of
        # the radius that lies outside the box: in L2, half of the digits, with their black pixels, were never found.
        stepped = (run.x_adv + moves * ascent(run.gradient, "L2")).clamp(0, 1)
        run.x_adv = (run.x + project_each(stepped - run.x, run.radius, norm)).clamp(0, 1)

    far = torch.full_like(x[:, 0, 0, 0], torch.inf)
    run = Run(x=x, y=y, x_adv=x, radius=far, widest=size(x.maximum(1 - x), norm))
    schedule = [
        (anneal(step_size, step_size / 100, k / steps), anneal(radius_step, 1e-3, k / steps)) for k in range(steps)
    ]
    return search_nearest(oracle, run, ask, move, [Phase(numbers=numbers) for numbers in schedule])


def anneal(first: float, last: float, progress: float) -> float:
    """From the first to the last along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def project_each(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """`project` onto a ball of each example's own radius, shape (B,): balls of one norm differ by their scale only."""
    scale = per_example(radius.clamp_min(TINY), delta)
    return project(delta / scale, 1.0, norm) * scale
