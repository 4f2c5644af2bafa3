"""FAB: small perturbations by stepping over linearised boundaries while staying drawn to the original image."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.minimum_norm import also_in_float32, within
from robustlib.hyperplane import to_plane
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.parallel_targets import Turned, in_turn
from robustlib.inference.steps import Nearest, Phase, search_nearest
from robustlib.input_checks import checked
from robustlib.losses import misclassified, other_classes, targeted_margin
from robustlib.norms import Radius, draw_in_ball, dual_size, either, per_example, size
from robustlib.rng import Draws, default_draws

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9


@dataclass(kw_only=True)
class Run(Nearest):
    """Where each example's run is. classes: those whose boundary to the true one is looked at, (B, K).  goal: a row is
    done within it; below 0 for one that goes on to the end.
    """

    classes: Tensor
    goal: Tensor
    wrong: Tensor = field(init=False)

    @classmethod
    def begin(cls, x: Tensor, y: Tensor, x_adv: Tensor, classes: Tensor, limit: Tensor | None) -> "Run":
        goal = torch.full_like(x[:, 0, 0, 0], -1) if limit is None else limit
        return cls(x=x, y=y, x_adv=x_adv, classes=classes, reach=limit, goal=goal)


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

    def search(oracle: Oracle, x: Tensor, y: Tensor, eps: Radius | None, draws: Draws) -> Tensor:
        others, limit = other_classes(oracle.logits(x), y)[:, : classes - 1], limits(eps, x)
        run = Run.begin(x, y, begin(x, norm, limit, random_start, draws), others, limit)
        return within(x, *run_once(oracle, run, norm, steps), limit)

    return also_in_float32(as_oracle(model), x, y, eps, default_draws(x, draws), search)


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

    def search(oracle: Oracle, x: Tensor, y: Tensor, eps: Radius | None, draws: Draws) -> Tensor:
        others, limit = other_classes(oracle.logits(x), y), limits(eps, x)

        def begin_turn(rows: Tensor, turn: int) -> Run:
            mine = None if limit is None else limit[rows]
            x_adv = begin(x[rows], norm, mine, random_start, draws[rows].restart(turn))
            return Run.begin(x[rows], y[rows], x_adv, others[rows, turn, None], mine)

        def run(run: Run) -> Turned:
            best, distance = run_once(oracle, run, norm, steps)
            return Turned(best, distance <= run.goal, -distance)

        found = in_turn(x, min(targets, others.shape[1]), oracle.batch, begin_turn, run)
        return within(x, found.x_adv, -found.score, limit)

    return also_in_float32(as_oracle(model), x, y, eps, default_draws(x, draws), search)


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


def run_once(oracle: Oracle, run: Run, norm: Norm, steps: int) -> tuple[Tensor, Tensor]:
    """The nearest misclassified image found and its distance, infinite where none was."""

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        _, gap, slopes = oracle.values_and_grads(run.x_adv, gaps, run.y, run.classes)
        run.x_adv = step_over(run, gap, slopes, norm)
        run.wrong = misclassified(oracle.logits(run.x_adv), run.y)
        return torch.where(run.wrong, size(run.x_adv - run.x, norm), torch.inf)

    def move(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        back = run.x + BETA * (run.x_adv - run.x)
        run.x_adv = either(run.wrong, back, run.x_adv)
        return run.distance <= run.goal

    return search_nearest(oracle, run, ask, move, [Phase()] * steps)


def gaps(logits: Tensor, y: Tensor, classes: Tensor) -> Tensor:
    """Logit of each class minus the true one, (B, K): below zero before the boundary."""
    return torch.stack([targeted_margin(logits, y, target) for target in classes.unbind(1)], 1)


def step_over(run: Run, gap: Tensor, slopes: Tensor, norm: Norm) -> Tensor:
    """From the point and from the original image a little beyond the nearest linearised boundary, and between them."""
    steepness = dual_size(slopes.flatten(0, 1), norm).reshape(gap.shape)
    nearest = (gap.abs() / (steepness + 1e-12)).argmin(1)
    row = torch.arange(len(nearest), device=nearest.device)
    normal, value = slopes[row, nearest], gap[row, nearest]
    value_at_x = value + (normal * (run.x - run.x_adv)).flatten(1).sum(1)
    here = to_plane(run.x_adv, normal, value, norm)
    there = to_plane(run.x, normal, value_at_x, norm)
    near, far = size(here, norm).clamp_min(1e-8), size(there, norm).clamp_min(1e-8)
    mix = per_example((near / (near + far)).clamp(0, ALPHA_MAX), run.x)
    return ((1 - mix) * (run.x_adv + ETA * here) + mix * (run.x + ETA * there)).clamp(0, 1)
