"""One run of Auto-PGD: steps along the gradient whose size follows how the loss rises."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.parallel_targets import still_needed
from robustlib.inference.confirm import settled, wrong
from robustlib.norms import Radius, ascent, per_example, project_in_box, size, steepest

MOMENTUM = 0.75
RHO = 0.75  # share of a window's steps in which the loss must rise, or else the step is halved
Climb = Callable[[Tensor, "Run"], tuple[Tensor, Tensor, Tensor]]


@dataclass
class Run:
    """Where each example's run is, a row each; rows of examples that fell are left out."""

    place: Tensor  # in the batch that came
    x: Tensor
    y: Tensor
    target: Tensor  # -1 where there is none
    eps: Tensor
    x_adv: Tensor
    before: Tensor  # the step before, for the momentum
    slope: Tensor
    value: Tensor
    best: Tensor
    best_slope: Tensor
    best_value: Tensor
    step_size: Tensor
    rises: Tensor  # steps of this window in which the loss rose
    checked_value: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether that checkpoint halved the step
    share: Tensor  # L1: share of coordinates that a step moves
    spread: Tensor  # L1: coordinates moved at the last checkpoint

    def __getitem__(self, chosen: Tensor) -> "Run":
        return Run(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def checkpoints(steps: int) -> list[int]:
    """After how many steps the step size is looked at: 22, 41, 57, 70, 80, 87, 93, 99 of 100."""
    window, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = [], window
    while at <= steps:
        found.append(at)
        window = max(window - shorter, least)
        at += window
    return found


def ascend(
    model: nn.Module,
    slope: Climb,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    x_adv: Tensor,
    norm: Norm,
    eps: Radius,
    steps: int,
    *,
    stop: bool,
    warm: bool = False,
    rivals: Tensor | None = None,
) -> Tensor:
    """One run of Auto-PGD. stop: leave out what is misclassified, which a radius larger than the real one forbids."""
    blank = torch.zeros_like(x[:, 0, 0, 0])
    radii = eps if isinstance(eps, Tensor) else torch.full_like(blank, eps, dtype=torch.float64)
    run = Run(
        torch.arange(len(x), device=x.device), x, y, target, radii, x_adv, x_adv, x, blank, x_adv, x, blank,
        (radii if norm == "L1" else 2 * radii).to(x), blank, blank, torch.ones_like(blank, dtype=torch.bool),
        torch.full_like(blank, 0.2), torch.full_like(blank, x[0].numel() if len(x) else 0),
    )  # fmt: skip
    if warm:
        run.spread = changed(x_adv - x)
        run.share = run.spread / x[0].numel() / 1.5
    found = x_adv.clone()
    period = max(int(0.04 * steps), 1)
    checks = set(range(period, steps + 1, period)) if norm == "L1" else set(checkpoints(steps))
    begun, length = 0, 0
    for step in range(steps + 1):
        logits, value, run.slope = slope(run.x_adv, run)
        run.rises = run.rises + (value > run.value) * (step > 0)
        run.value = value
        better = (value > run.best_value) | (step == 0)
        run.best_value = torch.where(better, value, run.best_value)
        run.best = torch.where(per_example(better, x), run.x_adv, run.best)
        run.best_slope = torch.where(per_example(better, x), run.slope, run.best_slope)
        if step == 0:
            run.checked_value = value
        if stop and (fell := settled(model, run.x_adv, run.y, wrong(logits, run.y))).any():
            found[run.place[fell]] = run.x_adv[fell]
            run = run[~fell if rivals is None else still_needed(run.place, fell, rivals)]
            if len(run.place) == 0:
                return found
        if step in checks:
            length, begun = step - begun, step
            adapt_l1(run) if norm == "L1" else adapt(run, length)
        if step < steps:
            move(run, norm, first=step == 0)
    found[run.place] = run.best
    return found


def move(run: Run, norm: Norm, *, first: bool) -> None:
    """One step, with momentum except in L1."""
    step = per_example(run.step_size, run.x)
    if norm == "L1":
        direction = steepest(run.slope, run.share).sign()
        direction = direction / per_example(size(direction, "L1").clamp_min(1), direction)
        run.x_adv = inside_ball(run.x, run.x_adv + step * direction, run.eps, norm)
        return
    momentum = 1.0 if first else MOMENTUM
    ahead = inside_ball(run.x, run.x_adv + step * ascent(run.slope, norm), run.eps, norm)
    kept = run.x_adv
    drawn = kept + momentum * (ahead - kept) + (1 - momentum) * (kept - run.before)
    run.x_adv, run.before = inside_ball(run.x, drawn, run.eps, norm), kept


def inside_ball(x: Tensor, x_adv: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    return (x + project_in_box(x, x_adv - x, eps, norm)).clamp(0, 1)


def adapt(run: Run, length: int) -> None:
    """At a checkpoint: halve the step of an example that climbs badly, and put it back on its best point."""
    stuck = (run.rises <= RHO * length) | (~run.halved & (run.checked_value >= run.best_value))
    run.step_size = torch.where(stuck, run.step_size / 2, run.step_size)
    go_back(run, stuck)
    run.halved, run.checked_value, run.rises = stuck, run.best_value, torch.zeros_like(run.rises)


def adapt_l1(run: Run) -> None:
    """In L1: move fewer coordinates where the best point has got sparser, else take smaller steps."""
    spread = changed(run.best - run.x)
    sparser = spread / run.spread.clamp_min(1) < 0.95
    run.share = spread / run.x[0].numel() / 1.5
    least, most = (run.eps / 10).to(run.x), run.eps.to(run.x)
    run.step_size = torch.where(sparser, most, (run.step_size / 1.5).clamp(least, most))
    go_back(run, sparser)
    run.spread = spread


def go_back(run: Run, chosen: Tensor) -> None:
    mask = per_example(chosen, run.x)
    run.x_adv = torch.where(mask, run.best, run.x_adv)
    run.slope = torch.where(mask, run.best_slope, run.slope)
    # The loss that the next step is compared with stays that of the step before, as in the authors' code.


def changed(delta: Tensor) -> Tensor:
    """How many coordinates of each perturbation are not zero, shape (B,)."""
    return (delta != 0).flatten(1).sum(1).to(delta)
