"""Projected gradient descent, and the fast gradient sign method, which is its single step."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.steps import Judge, Phase, Rows, search_ball
from robustlib.input_checks import checked, unchecked
from robustlib.losses import LossName, find_loss, misclassified
from robustlib.norms import Radius, added, ascent_step, draw_in_ball, project_in_box
from robustlib.rng import Draws, default_draws

# In L1 a pixel may go so far in one step, and cross the box in all together: steps to its corners alone reach less on a
# curved loss, and those spread thinner carry over less to other networks (measured).
FINEST = 0.05


@dataclass(kw_only=True)
class Run(Rows):
    """Where each example's run is."""

    eps: Radius
    step_size: Radius
    gradient: Tensor = field(init=False)


@checked
def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius = 8 / 255,
    steps: int = 10,
    step_size: float | None = None,
    loss: LossName = "ce",
    random_start: bool = True,
    stop_at_success: bool = False,
    start: Tensor | None = None,
    draws: Draws | None = None,
) -> Tensor:
    """Projected gradient descent, Madry et al. 2018, https://arxiv.org/abs/1706.06083.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).
    eps, step_size: in units of x, eps perhaps of each example its own; the step is 2.5 eps / steps where none is given.
    loss: "ce", "margin" or "dlr".  stop_at_success: an image is done with as soon as it is misclassified, which is all
    that an evaluation asks; training wants every step.
    start: where to begin, in the ball, instead of at random.
    Returns x_adv, shaped like x, in the box and the eps-ball.
    """
    oracle = as_oracle(model)
    x_adv = x if start is None else start
    if random_start and start is None:
        x_adv = anywhere(x, eps, norm, draws)
    run = Run(x=x, y=y, x_adv=x_adv, eps=eps, step_size=2.5 * eps / steps if step_size is None else step_size)
    return climb(oracle, run, norm, loss, steps, reach(steps), oracle.is_done if stop_at_success else None)


def anywhere(x: Tensor, eps: Radius, norm: Norm, draws: Draws | None) -> Tensor:
    """A random point of each image's ball."""
    return added(x, draw_in_ball(x, eps, norm, default_draws(x, draws), "pgd/start"), norm).clamp(0, 1)


def reach(steps: int) -> float:
    """How far a pixel may go in one of so many steps in L1."""
    return max(1 / max(steps, 1), FINEST)


def climb(
    oracle: Oracle, run: Run, norm: Norm, loss: LossName, steps: int, most: float, judge: Judge | None = None
) -> Tensor:
    """Steps of PGD from where a run is. most: see `reach`.  judge: as for `search_ball`."""
    objective = find_loss(loss)

    def ask(oracle: Oracle, run: Run, phase: Phase) -> Tensor:
        logits, _, run.gradient = oracle.value_and_grad(run.x_adv, objective, run.y)
        return misclassified(logits, run.y)

    def move(oracle: Oracle, run: Run, phase: Phase) -> None:
        x_adv = run.x_adv + ascent_step(run.x_adv, run.gradient, run.step_size, norm, most=most)
        run.x_adv = (run.x + project_in_box(run.x, x_adv - run.x, run.eps, norm)).clamp(0, 1)

    return search_ball(oracle, run, ask, move, [Phase()] * steps, judge)


@checked
def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    step_size: float | None = None,
    loss: LossName = "ce",
    random_start: bool = False,
    draws: Draws | None = None,
) -> Tensor:
    """Fast gradient (sign) method, Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572.

    One step of size eps. With random_start, after Wong et al. 2020 (https://arxiv.org/abs/2001.03994), one of size
    1.25 eps from a random point of the ball. Shapes, units and return value as for `pgd`.
    """
    if step_size is None:
        step_size = 1.25 * eps if random_start else eps
    return unchecked(pgd)(
        model,
        x,
        y,
        norm=norm,
        eps=eps,
        steps=1,
        step_size=step_size,
        loss=loss,
        random_start=random_start,
        draws=draws,
    )
