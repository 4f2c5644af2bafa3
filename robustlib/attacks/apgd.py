"""Auto-PGD: projected gradient descent that sets its own step size, untargeted and targeted."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from robustlib.attacks.turns import following, repeat, still_needed
from robustlib.draws import Draws, default_draws
from robustlib.losses import LOSSES, TARGETED, climb, confirmed, find_loss, wrong
from robustlib.norms import Norm, ascent, draw_in_ball, per_example, project_in_box, size, steepest

MOMENTUM = 0.75
RHO = 0.75  # share of a window's steps in which the loss must rise, or else the step is halved
L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius and steps of each stage, as factors
Climb = Callable[[Tensor, "Run"], tuple[Tensor, Tensor, Tensor]]


@dataclass
class Run:
    """Where each example's run is, a row each; rows of examples that fell are left out."""

    place: Tensor  # in the batch that came
    x: Tensor
    y: Tensor
    target: Tensor  # -1 where there is none
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


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    steps: int = 100,
    loss: Literal["ce", "dlr", "margin"] = "ce",
    start: Tensor | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """Auto-PGD, Croce and Hein 2020, https://arxiv.org/abs/2003.01690; L1: 2021, https://arxiv.org/abs/2103.01208.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps: in units of x.
    An image is done with as soon as it is misclassified. In L1 the radius goes down from 3 eps by 2 eps to eps.
    start: where to begin, in the ball, instead of at a random point of its edge.
    Returns x_adv, shaped like x, in the box and the eps-ball: misclassified, or the image of the highest loss.
    """
    x_adv = start_on_edge(x, eps, norm, default_draws(x, draws)) if start is None else start
    return stages(model, x, y, torch.full_like(y, -1), norm, eps, steps, loss, x_adv)


def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    steps: int = 100,
    loss: Literal["ce", "dlr", "margin"] = "dlr",
    targets: int = 9,
    draws: Draws | None = None,
) -> Tensor:
    """Auto-PGD towards each of the classes ranked next by the clean logits, in turn, for what still stands.

    targets: how many classes; at most all but the true one.  Everything else as for `apgd`.
    """
    draws = default_draws(x, draws)
    x_adv, live = x.clone(), torch.arange(len(x), device=x.device)
    ranking = other_classes(model(x), y)
    group: list[int] = []
    while len(live) and (group := following(group, min(targets, ranking.shape[1]), model, len(live))):
        # Each turn has its own start, so that none of them depends on which turns ran beside it.
        starts = [start_on_edge(x[live], eps, norm, draws[live].restart(turn)) for turn in group]
        images, classes, rivals = repeat(x[live], group), repeat(y[live], group), repeat(torch.arange(len(live)), group)
        attacked = stages(
            model, images, classes, ranking[live][:, group].T.flatten(), norm, eps, steps, loss, torch.cat(starts),
            rivals.to(x.device),
        )  # fmt: skip
        fell = confirmed(model, attacked, classes, wrong(model(attacked), classes)).reshape(len(group), -1)
        first = torch.where(fell.any(0), fell.int().argmax(0), len(group) - 1)
        x_adv[live] = attacked.reshape(len(group), *x_adv[live].shape)[first, torch.arange(len(live), device=x.device)]
        live = live[~fell.any(0)]
    return x_adv


def other_classes(logits: Tensor, y: Tensor) -> Tensor:
    """The classes but the true one, by falling logit, shape (B, classes - 1)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != y[:, None]].reshape(len(y), -1)


def stages(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    norm: Norm,
    eps: float,
    steps: int,
    loss: str,
    x_adv: Tensor,
    rivals: Tensor | None = None,
) -> Tensor:
    """One run; in L1 three, at falling radii, each from where the one before stopped.

    rivals: of rows with the same number only the first to fall counts: when one has, those after it are left out.
    """
    targeted = bool((target >= 0).all()) and len(target) > 0
    objective = find_loss(loss, TARGETED if targeted else LOSSES)

    def slope(x_adv: Tensor, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        return climb(model, x_adv, objective, run.y, *([run.target] if targeted else []))

    if norm != "L1":
        return ascend(model, slope, x, y, target, x_adv, norm, eps, steps, stop=True, rivals=rivals)
    for number, (factor, share) in enumerate(L1_STAGES):
        last, length = number == len(L1_STAGES) - 1, max(round(share * steps), 1)
        x_adv = x + project_in_box(x, x_adv - x, factor * eps, norm)
        x_adv = ascend(
            model, slope, x, y, target, x_adv, norm, factor * eps, length, stop=last, warm=number > 0, rivals=rivals
        )
    return x_adv


def start_on_edge(x: Tensor, eps: float, norm: Norm, draws: Draws) -> Tensor:
    """A random point on the edge of the first stage's ball, cut at the box."""
    if norm == "L1":
        delta = draws.normal(x.shape[1:], "apgd/start").to(x)
        return x + project_in_box(x, delta, L1_STAGES[0][0] * eps, norm)
    delta = draw_in_ball(x, 1.0, norm, draws, "apgd/start")
    return (x + eps * delta / per_example(size(delta, norm), delta)).clamp(0, 1)


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
    eps: float,
    steps: int,
    *,
    stop: bool,
    warm: bool = False,
    rivals: Tensor | None = None,
) -> Tensor:
    """One run of Auto-PGD. stop: leave out what is misclassified, which a radius larger than the real one forbids."""
    blank = torch.zeros_like(x[:, 0, 0, 0])
    first = eps if norm == "L1" else 2 * eps
    run = Run(
        torch.arange(len(x), device=x.device), x, y, target, x_adv, x_adv, x, blank, x_adv, x, blank,
        torch.full_like(blank, first), blank, blank, torch.ones_like(blank, dtype=torch.bool),
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
        if stop and (fell := confirmed(model, run.x_adv, run.y, wrong(logits, run.y))).any():
            found[run.place[fell]] = run.x_adv[fell]
            run = run[~fell if rivals is None else still_needed(run.place, fell, rivals)]
            if len(run.place) == 0:
                return found
        if step in checks:
            length, begun = step - begun, step
            adapt_l1(run, eps) if norm == "L1" else adapt(run, length)
        if step < steps:
            move(run, norm, eps, first=step == 0)
    found[run.place] = run.best
    return found


def move(run: Run, norm: Norm, eps: float, *, first: bool) -> None:
    """One step, with momentum except in L1."""
    step = per_example(run.step_size, run.x)
    if norm == "L1":
        direction = steepest(run.slope, run.share).sign()
        direction = direction / per_example(size(direction, "L1").clamp_min(1), direction)
        run.x_adv = inside_ball(run.x, run.x_adv + step * direction, eps, norm)
        return
    momentum = 1.0 if first else MOMENTUM
    ahead = inside_ball(run.x, run.x_adv + step * ascent(run.slope, norm), eps, norm)
    kept = run.x_adv
    drawn = kept + momentum * (ahead - kept) + (1 - momentum) * (kept - run.before)
    run.x_adv, run.before = inside_ball(run.x, drawn, eps, norm), kept


def inside_ball(x: Tensor, x_adv: Tensor, eps: float, norm: Norm) -> Tensor:
    return (x + project_in_box(x, x_adv - x, eps, norm)).clamp(0, 1)


def adapt(run: Run, length: int) -> None:
    """At a checkpoint: halve the step of an example that climbs badly, and put it back on its best point."""
    stuck = (run.rises <= RHO * length) | (~run.halved & (run.checked_value >= run.best_value))
    run.step_size = torch.where(stuck, run.step_size / 2, run.step_size)
    go_back(run, stuck)
    run.halved, run.checked_value, run.rises = stuck, run.best_value, torch.zeros_like(run.rises)


def adapt_l1(run: Run, eps: float) -> None:
    """In L1: move fewer coordinates where the best point has got sparser, else take smaller steps."""
    spread = changed(run.best - run.x)
    sparser = spread / run.spread.clamp_min(1) < 0.95
    run.share = spread / run.x[0].numel() / 1.5
    run.step_size = torch.where(sparser, eps, (run.step_size / 1.5).clamp(eps / 10, eps))
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
