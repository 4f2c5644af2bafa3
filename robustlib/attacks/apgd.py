"""Auto-PGD: projected gradient descent that sets its own step size, untargeted and targeted."""

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.apgd_steps import Climb, ascend
from robustlib.attacks.parallel_targets import following, repeat
from robustlib.inference.batched_model import Engine
from robustlib.inference.confirm import settled, surely_right
from robustlib.inference.expectation import Expectation
from robustlib.inference.gradients import climb
from robustlib.input_checks import checked
from robustlib.losses import LOSSES, TARGETED, LossName, find_loss, margin
from robustlib.model_calls import ask
from robustlib.norms import Radius, beside, chosen, draw_in_ball, per_example, project_in_box, size
from robustlib.rng import Draws, default_draws

LAST_STEPS = 25  # in float32, of images on the edge: they raise margins by 0.0002 to 0.002 (measured)
L1_STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius and steps of each stage, as factors


@checked
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius = 8 / 255,
    steps: int = 100,
    loss: LossName = "ce",
    start: Tensor | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """Auto-PGD, Croce and Hein 2020, https://arxiv.org/abs/2003.01690; L1: 2021, https://arxiv.org/abs/2103.01208.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps: in units of x, perhaps of each example
    its own.
    An image is done with as soon as it is misclassified. In L1 the radius goes down from 3 eps by 2 eps to eps.
    start: where to begin, in the ball, instead of at a random point of its edge.
    Returns x_adv, shaped like x, in the box and the eps-ball: misclassified, or the image of the highest loss.
    """
    x_adv = start_on_edge(x, eps, norm, default_draws(x, draws)) if start is None else start
    return stages(model, x, y, torch.full_like(y, -1), norm, eps, steps, loss, x_adv)


@checked
def apgd_targeted(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius = 8 / 255,
    steps: int = 100,
    loss: LossName = "dlr",
    targets: int = 9,
    draws: Draws | None = None,
) -> Tensor:
    """Auto-PGD towards each of the classes ranked next by the clean logits, in turn, for what still stands.

    targets: how many classes; at most all but the true one.  Everything else as for `apgd`.
    """
    draws = default_draws(x, draws)
    x_adv, live = x.clone(), torch.arange(len(x), device=x.device)
    highest = torch.full_like(x[:, 0, 0, 0], -torch.inf)  # margin of a randomised model's images so far
    ranking = other_classes(ask(model, x), y)
    group: list[int] = []
    while len(live) and (group := following(group, min(targets, ranking.shape[1]), model, len(live))):
        # Each turn has its own start, so that none of them depends on which turns ran beside it.
        radii = chosen(eps, live)
        starts = [start_on_edge(x[live], radii, norm, draws[live].restart(turn)) for turn in group]
        images, classes, rivals = repeat(x[live], group), repeat(y[live], group), repeat(torch.arange(len(live)), group)
        attacked = stages(
            model, images, classes, ranking[live][:, group].T.flatten(), norm,
            repeat(radii, group) if isinstance(radii, Tensor) else radii, steps, loss, torch.cat(starts),
            rivals.to(x.device),
        )  # fmt: skip
        fell = settled(model, attacked, classes, ~surely_right(model, attacked, classes)).reshape(len(group), -1)
        chosen_turn = torch.where(fell.any(0), fell.int().argmax(0), len(group) - 1)
        taken = torch.ones_like(live, dtype=torch.bool)
        if isinstance(model, Expectation):  # of which no image falls for good: the worst of all targets counts
            gap = margin(ask(model, attacked), classes).reshape(len(group), -1)
            chosen_turn, taken = gap.argmax(0), gap.amax(0) > highest[live]
            highest[live] = highest[live].maximum(gap.amax(0))
        found = attacked.reshape(len(group), *x_adv[live].shape)[chosen_turn, torch.arange(len(live), device=x.device)]
        x_adv[live[taken]] = found[taken]
        live = live[~fell.any(0)]
    return x_adv


def other_classes(logits: Tensor, y: Tensor) -> Tensor:
    """The classes but the true one, by falling logit, shape (B, classes - 1)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != y[:, None]].reshape(len(y), logits.shape[1] - 1)


def stages(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    norm: Norm,
    eps: Radius,
    steps: int,
    loss: str,
    x_adv: Tensor,
    rivals: Tensor | None = None,
) -> Tensor:
    """One run; in L1 three, at falling radii, each from where the one before stopped. A search in half precision ends
    with some steps in float32 where its rounding hides whether an image has fallen.

    rivals: of rows with the same number only the first to fall counts: when one has, those after it are left out.
    """
    targeted = bool((target >= 0).all()) and len(target) > 0
    objective = find_loss(loss, TARGETED if targeted else LOSSES)

    def climber(model: nn.Module) -> Climb:
        return lambda x_adv, run: climb(model, x_adv, objective, run.y, *([run.target] if targeted else []))

    if norm != "L1":
        x_adv = ascend(model, climber(model), x, y, target, x_adv, norm, eps, steps, stop=True, rivals=rivals)
    for number, (factor, share) in enumerate(L1_STAGES if norm == "L1" else ()):
        last, length = number == len(L1_STAGES) - 1, max(round(share * steps), 1)
        x_adv = x + project_in_box(x, x_adv - x, factor * eps, norm)
        x_adv = ascend(
            model, climber(model), x, y, target, x_adv, norm, factor * eps, length,
            stop=last, warm=number > 0, rivals=rivals,
        )  # fmt: skip
    if isinstance(model, Engine) and model.finer:
        (fine,) = model.finer
        near = (~surely_right(model, x_adv, y)).nonzero().squeeze(1)
        if len(near):
            x_adv[near] = ascend(
                fine, climber(fine), x[near], y[near], target[near], x_adv[near], norm, chosen(eps, near), LAST_STEPS,
                stop=True, warm=norm == "L1",
            )  # fmt: skip
    return x_adv


def start_on_edge(x: Tensor, eps: Radius, norm: Norm, draws: Draws) -> Tensor:
    """A random point on the edge of the first stage's ball, cut at the box."""
    if norm == "L1":
        delta = draws.normal(x.shape[1:], "apgd/start").to(x)
        return x + project_in_box(x, delta, L1_STAGES[0][0] * eps, norm)
    delta = draw_in_ball(x, 1.0, norm, draws, "apgd/start")
    return (x + beside(eps, x) * delta / per_example(size(delta, norm), delta)).clamp(0, 1)
