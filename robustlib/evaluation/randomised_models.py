"""Models that change their answer: attacked through the expectation over their randomness, scored on fresh draws."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.plans import Plan
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_images, layout
from robustlib.losses import margin
from robustlib.metrics import NOTHING
from robustlib.norms import per_example, project_in_box, size
from robustlib.outcome import Batch, check_attacked, check_budget, judge, score
from robustlib.rng import Draws, seeded

INNER = 0.99  # of the radius: farther out there is nothing to be had
GROUP = 100  # examples that share their passes: a model's own noise comes from torch's generator, seeded by group


def randomised_batches(
    model: nn.Module,
    x: ImageSet,
    y: Tensor,
    groups: Iterable[Tensor],
    plan: Plan,
    *,
    norm: Norm,
    seed: int,
    device: torch.device,
    draws: int,
    eot_draws: int,
) -> Iterator[tuple[Batch, ...]]:
    """The outcome of each group at each radius, one after the other. groups: of the examples' places in x."""
    for rows in groups:
        images = as_images(x[rows], device).contiguous(memory_format=layout(model))
        labels, own = y[rows].to(device), Draws(seed, rows.to(device))
        with seeded(seed, f"evaluate/{int(rows[0]) // GROUP}", device):
            found = tuple(
                judge_randomised(model, images, labels, own, norm, eps, named, draws, eot_draws) for eps, named in plan
            )
        yield found


def judge_randomised(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    own: Draws,
    norm: Norm,
    eps: float | None,
    named: Sequence[tuple[str, AttackFunction]],
    draws: int,
    eot_draws: int,
) -> Batch:
    """A group's outcome at one radius, for a model that changes its answer."""
    names = [name for name, _ in named]
    attacks = [attack for _, attack in named]
    x_adv, by, seconds = strongest(model, x, y, attacks, draws=own, eot_draws=eot_draws, norm=norm, eps=eps)
    check_budget(x_adv, x, norm, eps, names)
    clean, attacked = score(model, x, y, draws), score(model, x_adv, y, draws)
    names = np.array([*names, NOTHING])
    unknown = torch.full_like(y, -1)  # every attack meets every example: none of them says how soon it fell
    outcome = judge(own.index, y, clean, attacked, size(x_adv - x, norm), names[by.cpu()], unknown)
    return Batch(outcome, x_adv.cpu().contiguous(), by.cpu().numpy(), seconds)


def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[AttackFunction],
    *,
    draws: Draws,
    eot_draws: int,
    norm: Norm = "Linf",
    eps: float | None = None,
) -> tuple[Tensor, Tensor, list[float]]:
    """`attack_in_sequence` for a randomised model: no example is ever done with, so each meets every attack.

    The attacks climb the expectation over the randomness; of several, for each example the image is kept on which the
    fewest of `eot_draws` draws are right: a choice only, what it is worth is scored on fresh draws. The clean image is
    no candidate: chance would let it win, and overstate the model.
    With a radius, an image within it is also tried at the edge of the ball: minimum-norm attacks stop where the mean is
    only just wrong, and half of the draws are right there.
    """
    seconds, mean = [], Expectation(model, eot_draws)
    x_adv, best, position = x.clone(), torch.full(y.shape, math.inf, device=x.device), torch.zeros_like(y)
    for number, attack in enumerate(attacks):
        start = time.perf_counter()
        found = attack(mean, x.clone(), y, draws=draws.restart(number))  # which may write into its images
        check_attacked(f"attack {number + 1} of {len(attacks)}", found, x)
        found = found.detach()
        if eps is not None and len(inner := moved_within(found, x, norm, eps).nonzero().squeeze(1)):
            edge = to_edge(found[inner], x[inner], norm, eps)
            farther = raised(mean, edge, y[inner]) > raised(mean, found[inner], y[inner])
            found[inner[farther]] = edge[farther]
        correct = score(model, found, y, eot_draws).correct if len(attacks) > 1 else best - 1
        better = (correct < best) | (number == 0)
        x_adv[better], best[better], position[better] = found[better], correct[better], number
        seconds.append(time.perf_counter() - start)
    return x_adv, position, seconds


@torch.no_grad()
def raised(mean: Expectation, x: Tensor, y: Tensor) -> Tensor:
    """The margin of the mean of draws, shape (B,)."""
    return margin(mean(x), y)


def moved_within(x_adv: Tensor, x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Which images were changed, and lie well inside of the ball, shape (B,)."""
    moved = size(x_adv - x, norm)
    return (moved > 0) & (moved < INNER * eps)


def to_edge(x_adv: Tensor, x: Tensor, norm: Norm, eps: float) -> Tensor:
    """The images moved on, away from x, to the edge of the ball, as far as the box lets them."""
    delta = x_adv - x
    longer = delta * per_example(eps / size(delta, norm), x)
    return (x + project_in_box(x, longer, eps, norm)).clamp(0, 1)
