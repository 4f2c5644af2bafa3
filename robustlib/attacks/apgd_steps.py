"""One run of Auto-PGD: steps along the gradient whose size follows how the loss rises."""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.inference.oracle import Oracle
from robustlib.inference.steps import Phase, Rows, search_ball
from robustlib.losses import Loss, misclassified
from robustlib.norms import Radius, ascent, either, per_example, project_in_box, size, steepest

MOMENTUM = 0.75
RHO = 0.75  # share of a window's steps in which the loss must rise, or else the step is halved


@dataclass(kw_only=True)
class Start(Rows):
    """Where a run begins. target: the class towards which it goes; None away from the true one."""

    eps: Radius
    target: Tensor | None = None


@dataclass(kw_only=True)
class Run(Rows):
    """Where each example's run is."""

    eps: Tensor
    target: Tensor | None
    before: Tensor  # the step before, for the momentum
    step_size: Tensor
    value: Tensor  # of the loss
    best: Tensor
    best_value: Tensor
    rises: Tensor  # steps of this window in which the loss rose
    checked_value: Tensor  # the best loss at the last checkpoint
    halved: Tensor  # whether that checkpoint halved the step
    share: Tensor  # L1: share of coordinates that a step moves
    spread: Tensor  # L1: coordinates moved at the last checkpoint
    gradient: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)

    @classmethod
    def begin(cls, start: Start, norm: Norm, *, warm: bool) -> Self:
        """warm: in L1 as many coordinates are moved as the image differs in from the original."""
        x, x_adv, blank = start.x, start.x_adv, torch.zeros_like(start.x[:, 0, 0, 0])
        pixels = x.shape[1:].numel()
        spread = changed(x_adv - x) if warm else torch.full_like(blank, pixels)
        eps = torch.as_tensor(start.eps, dtype=torch.float64, device=x.device).expand(len(x))
        return cls(
            x=x,
            y=start.y,
            x_adv=x_adv,
            rival=start.rival,
            eps=eps,
            target=start.target,
            before=x_adv,
            step_size=(eps if norm == "L1" else 2 * eps).to(x),
            value=blank,
            best=x_adv,
            best_value=blank,
            rises=blank,
            checked_value=blank,
            halved=torch.ones_like(blank, dtype=torch.bool),
            share=spread / pixels / 1.5 if warm else torch.full_like(blank, 0.2),
            spread=spread,
        )

    @property
    def result(self) -> Tensor:
        return self.best


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
    oracle: Oracle, start: Start, loss: Loss, norm: Norm, steps: int, *, stop: bool, warm: bool = False
) -> Tensor:
    """One run of Auto-PGD. stop: leave out what is misclassified, which a radius larger than the real one forbids."""
    period = max(int(0.04 * steps), 1)
    checks = list(range(period, steps + 1, period)) if norm == "L1" else checkpoints(steps)
    windows = dict(zip(checks, [at - before for before, at in pairwise([0, *checks])], strict=True))
    adapt, move = (adapt_l1, move_l1) if norm == "L1" else (adapt_step_size, partial(move_with_momentum, norm=norm))

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        rows = (run.y,) if run.target is None else (run.y, run.target)
        logits, value, run.gradient = oracle.value_and_grad(run.x_adv, loss, *rows)
        better = value > run.best_value
        if phase.kind == "first":
            better, run.checked_value, run.best_gradient = torch.ones_like(better), value, run.gradient
        else:
            run.rises = run.rises + (value > run.value)
        run.value = value
        run.best_value = torch.where(better, value, run.best_value)
        run.best = either(better, run.x_adv, run.best)
        run.best_gradient = either(better, run.gradient, run.best_gradient)
        return misclassified(logits, run.y)

    def go_on(oracle: Oracle, run: Run, phase: Phase) -> None:
        if phase.kind == "check":
            adapt(run, *phase.numbers)
        if phase.kind != "last":
            move(run, first=phase.kind == "first")

    between = [Phase("check", (windows[k],)) if k in windows else Phase() for k in range(1, steps)]
    phases = [Phase("first"), *between, Phase("last")]
    return search_ball(oracle, Run.begin(start, norm, warm=warm), ask, go_on, phases, oracle.is_done if stop else None)


def move_with_momentum(run: Run, *, first: bool, norm: Norm) -> None:
    step = per_example(run.step_size, run.x)
    momentum = 1.0 if first else MOMENTUM
    ahead = inside_ball(run.x, run.x_adv + step * ascent(run.gradient, norm), run.eps, norm)
    kept = run.x_adv
    drawn = kept + momentum * (ahead - kept) + (1 - momentum) * (kept - run.before)
    run.x_adv, run.before = inside_ball(run.x, drawn, run.eps, norm), kept


def move_l1(run: Run, *, first: bool) -> None:
    """A step of the steepest coordinates alone, without momentum."""
    direction = steepest(run.gradient, run.share).sign()
    direction = direction / per_example(size(direction, "L1").clamp_min(1), direction)
    run.x_adv = inside_ball(run.x, run.x_adv + per_example(run.step_size, run.x) * direction, run.eps, "L1")


def inside_ball(x: Tensor, x_adv: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    return (x + project_in_box(x, x_adv - x, eps, norm)).clamp(0, 1)


def adapt_step_size(run: Run, length: float) -> None:
    """At a checkpoint: halve the step of an example that climbs badly, and put it back on its best point."""
    stuck = (run.rises <= RHO * length) | (~run.halved & (run.checked_value >= run.best_value))
    run.step_size = torch.where(stuck, run.step_size / 2, run.step_size)
    go_back(run, stuck)
    run.halved, run.checked_value, run.rises = stuck, run.best_value, torch.zeros_like(run.rises)


def adapt_l1(run: Run, length: float) -> None:
    """In L1: move fewer coordinates where the best point has got sparser, else take smaller steps."""
    spread = changed(run.best - run.x)
    sparser = spread / run.spread.clamp_min(1) < 0.95
    run.share = spread / run.x.shape[1:].numel() / 1.5
    least, most = (run.eps / 10).to(run.x), run.eps.to(run.x)
    run.step_size = torch.where(sparser, most, (run.step_size / 1.5).clamp(least, most))
    go_back(run, sparser)
    run.spread = spread


def go_back(run: Run, chosen: Tensor) -> None:
    run.x_adv = either(chosen, run.best, run.x_adv)
    run.gradient = either(chosen, run.best_gradient, run.gradient)
    # The loss that the next step is compared with stays that of the step before, as in the authors' code.


def changed(delta: Tensor) -> Tensor:
    """How many coordinates of each perturbation are not zero, shape (B,)."""
    return (delta != 0).flatten(1).sum(1).to(delta)
