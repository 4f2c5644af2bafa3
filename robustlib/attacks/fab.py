"""FAB: small perturbations by stepping over linearised boundaries while staying drawn to the original image."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.apgd import other_classes
from robustlib.attacks.parallel_targets import following, repeat, still_needed
from robustlib.hyperplane import to_plane
from robustlib.inference.batched_model import differentiate
from robustlib.inference.confirm import confirmed, starts, wrong
from robustlib.input_checks import checked
from robustlib.losses import targeted_margin
from robustlib.model_calls import ask
from robustlib.norms import Radius, chosen, draw_in_ball, dual_size, per_example, size
from robustlib.rng import Draws, default_draws

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9


@dataclass
class Run:
    """Where each example's run is, a row each; rows of examples that are done with are left out."""

    place: Tensor
    x: Tensor
    y: Tensor
    classes: Tensor  # the classes whose boundary to the true one is looked at, (B, K)
    point: Tensor
    best: Tensor
    distance: Tensor  # of the best adversarial point; infinite where there is none
    reach: Tensor  # beyond it a point is only a place to go on from, whose verdict nobody will ask for
    goal: Tensor  # within it a row is done with: below 0 for one that goes on to the end

    def __getitem__(self, chosen: Tensor) -> "Run":
        return Run(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@checked
def fab(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius | None = 8 / 255,
    steps: int = 100,
    classes: int = 10,
    random_start: bool = False,
    draws: Draws | None = None,
) -> Tensor:
    """Fast adaptive boundary attack, Croce and Hein 2020, https://arxiv.org/abs/1907.02044, untargeted.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).
    eps: radius within which an image is done with, in units of x, perhaps of each example its own; None looks for the
    smallest perturbation to the end.
    classes: how many of the classes ranked first by the clean logits are looked at.
    random_start: from a random point within eps / 2. Returns x_adv, shaped like x: the nearest misclassified image
    found, if it lies within eps, else the original.
    """
    others = other_classes(ask(model, x), y)[:, : classes - 1]
    draws, limit = default_draws(x, draws), limits(eps, x)
    point = begin(x, norm, limit, random_start, draws)
    x_adv = within(x, *run_once(model, x, y, others, norm, limit, steps, point), limit)
    options = {"norm": norm, "steps": steps, "classes": classes, "random_start": random_start}
    return with_finer(fab, model, x, y, x_adv, eps, draws, **options)


@checked
def fab_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius | None = 8 / 255,
    steps: int = 100,
    targets: int = 9,
    random_start: bool = False,
    draws: Draws | None = None,
) -> Tensor:
    """FAB towards each of the classes ranked next by the clean logits, in turn: one boundary at a time, so that a step
    costs one gradient. targets: how many classes; at most all but the true one.  Everything else as for `fab`.
    """
    others, draws, limit = other_classes(ask(model, x), y), default_draws(x, draws), limits(eps, x)
    best, distance = x.clone(), torch.full_like(x[:, 0, 0, 0], torch.inf)
    live = torch.arange(len(x), device=x.device)
    group: list[int] = []
    while len(live) and (group := following(group, min(targets, others.shape[1]), model, len(live))):
        mine = None if limit is None else limit[live]
        starts = [begin(x[live], norm, mine, random_start, draws[live].restart(turn)) for turn in group]
        rivals = repeat(torch.arange(len(live), device=x.device), group)
        classes = others[live][:, group].T.reshape(-1, 1)
        found, how_far = run_once(
            model, repeat(x[live], group), repeat(y[live], group), classes, norm,
            None if mine is None else repeat(mine, group), steps, torch.cat(starts), rivals,
        )  # fmt: skip
        for nth in range(len(group)):
            rows = slice(nth * len(live), (nth + 1) * len(live))
            nearer = how_far[rows] < distance[live]
            if mine is not None:
                nearer &= distance[live] > mine  # else an earlier turn has succeeded
            best[live[nearer]], distance[live[nearer]] = found[rows][nearer], how_far[rows][nearer]
        if mine is not None:
            live = live[distance[live] > mine]
    options = {"norm": norm, "steps": steps, "targets": targets, "random_start": random_start}
    return with_finer(fab_targeted, model, x, y, within(x, best, distance, limit), eps, draws, **options)


def with_finer(
    attack: Callable[..., Tensor], model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, eps: Radius | None,
    draws: Draws, **options: Any,
) -> Tensor:  # fmt: skip
    """x_adv, with images that only `model` takes for broken as they are attacked on its finer copy: see `starts`."""
    for net, rows in starts(model, x, y):
        if net is not model:
            radius = chosen(eps, rows) if isinstance(eps, Tensor) else eps
            x_adv[rows] = attack(net, x[rows], y[rows], eps=radius, draws=draws[rows], **options)
    return x_adv


def limits(eps: Radius | None, x: Tensor) -> Tensor | None:
    """Each example's radius, in the images' arithmetic, in which distances are measured too."""
    if eps is None or isinstance(eps, Tensor):
        return None if eps is None else eps.to(x)
    return torch.full_like(x[:, 0, 0, 0], eps)


def begin(x: Tensor, norm: Norm, limit: Tensor | None, random_start: bool, draws: Draws) -> Tensor:
    """The image itself, or a random point within eps / 2."""
    if not random_start or limit is None:
        return x.clone()
    delta = draw_in_ball(x, 1.0, norm, draws, "fab/start")
    return (x + per_example(limit, x) / 2 * delta / per_example(size(delta, norm), delta)).clamp(0, 1)


def within(x: Tensor, best: Tensor, distance: Tensor, limit: Radius | None) -> Tensor:
    reached = distance <= (torch.finfo(x.dtype).max if limit is None else limit)
    return torch.where(per_example(reached, x), best, x)


def run_once(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    classes: Tensor,
    norm: Norm,
    limit: Tensor | None,
    steps: int,
    point: Tensor,
    rivals: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found and its distance, infinite where none was. rivals: as for Auto-PGD."""
    far = torch.full_like(x[:, 0, 0, 0], torch.inf)
    reach = far if limit is None else limit
    goal = torch.full_like(far, -1) if limit is None else limit
    run = Run(torch.arange(len(x), device=x.device), x, y, classes, point, x, far, reach, goal)
    best, distance = x.clone(), far.clone()

    for _ in range(steps):
        if len(run.place) == 0:
            break
        _, gap, slopes = differentiate(model, run.point, gaps, run.y, run.classes)
        run.point = step_over(run, gap, slopes, norm)
        hit = wrong(ask(model, run.point), run.y)
        how_far = torch.where(hit, size(run.point - run.x, norm), torch.inf)
        nearer = how_far < run.distance
        claimed = nearer & (how_far <= run.reach)
        nearer &= confirmed(model, run.point, run.y, claimed) | ~claimed
        run.distance = torch.where(nearer, how_far, run.distance)
        run.best = torch.where(per_example(nearer, x), run.point, run.best)
        run.point = torch.where(per_example(hit, x), run.x + BETA * (run.point - run.x), run.point)
        if (done := run.distance <= run.goal).any():
            best[run.place[done]], distance[run.place[done]] = run.best[done], run.distance[done]
            run = run[~done if rivals is None else still_needed(run.place, done, rivals)]
    best[run.place], distance[run.place] = run.best, run.distance
    return best, distance


def gaps(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """Logit of each class minus the true one, (B, K): below zero before the boundary."""
    return torch.stack([targeted_margin(logits, y, target) for target in classes.unbind(1)], 1)


def step_over(run: Run, gap: Tensor, slopes: Tensor, norm: Norm) -> Tensor:
    """From the point and from the original image a little beyond the nearest linearised boundary, and between them."""
    steepness = dual_size(slopes.flatten(0, 1), norm).reshape(gap.shape)
    nearest = (gap.abs() / (steepness + 1e-12)).argmin(1)
    row = torch.arange(len(nearest), device=nearest.device)
    normal, value = slopes[row, nearest], gap[row, nearest]
    value_at_x = value + (normal * (run.x - run.point)).flatten(1).sum(1)
    here = to_plane(run.point, normal, value, norm)
    there = to_plane(run.x, normal, value_at_x, norm)
    near, far = size(here, norm).clamp_min(1e-8), size(there, norm).clamp_min(1e-8)
    mix = per_example((near / (near + far)).clamp(0, ALPHA_MAX), run.x)
    return ((1 - mix) * (run.point + ETA * here) + mix * (run.x + ETA * there)).clamp(0, 1)
