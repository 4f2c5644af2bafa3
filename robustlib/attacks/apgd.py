"""Auto-PGD: projected gradient descent that sets its own step size, untargeted and targeted."""

from dataclasses import replace

from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.apgd_steps import Start, ascend
from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.inference.parallel_targets import Turned, in_turn
from robustlib.input_checks import checked
from robustlib.losses import LOSSES, TARGETED, LossName, find_loss, margin, other_classes
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
    return stages(as_oracle(model), Start(x=x, y=y, x_adv=x_adv, eps=eps), norm, steps, loss)


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
    """Auto-PGD towards each of the classes ranked next by the clean logits, in turn, until an image is misclassified.

    targets: how many classes; at most all but the true one.  Everything else is as for `apgd`, but that of images that
    are not misclassified the one of the largest margin is returned.
    """
    oracle, draws = as_oracle(model), default_draws(x, draws)
    ranking = other_classes(oracle.logits(x), y)

    def begin(rows: Tensor, turn: int) -> Start:
        # Each turn has its own start, so that none of them depends on which turns ran beside it.
        radii = chosen(eps, rows)
        x_adv = start_on_edge(x[rows], radii, norm, draws[rows].restart(turn))
        return Start(x=x[rows], y=y[rows], x_adv=x_adv, eps=radii, target=ranking[rows, turn])

    def run(start: Start) -> Turned:
        x_adv = stages(oracle, start, norm, steps, loss)
        logits = oracle.logits(x_adv)
        done = oracle.is_done(x_adv, start.y, oracle.in_doubt(logits, start.y))
        return Turned(x_adv, done, margin(oracle.once_more(x_adv, logits), start.y))

    return in_turn(x, min(targets, ranking.shape[1]), oracle.batch, begin, run).x_adv


def stages(oracle: Oracle, start: Start, norm: Norm, steps: int, loss: str) -> Tensor:
    """One run; in L1 three, at falling radii, each from where the one before stopped. Where rounding hides whether an
    image is misclassified, some steps in float32 follow.
    """
    objective = find_loss(loss, LOSSES if start.target is None else TARGETED)
    x_adv, eps = start.x_adv, start.eps
    if norm != "L1":
        x_adv = ascend(oracle, start, objective, norm, steps, stop=True)
    for number, (factor, share) in enumerate(L1_STAGES if norm == "L1" else ()):
        last, length = number == len(L1_STAGES) - 1, max(round(share * steps), 1)
        x_adv = start.x + project_in_box(start.x, x_adv - start.x, factor * eps, norm)
        here = replace(start, x_adv=x_adv, eps=factor * eps)
        x_adv = ascend(oracle, here, objective, norm, length, stop=last, warm=number > 0)
    for finer, near in oracle.on_edge(x_adv, start.y):
        here = replace(start, x_adv=x_adv, rival=None)[near]
        x_adv[near] = ascend(finer, here, objective, norm, LAST_STEPS, stop=True, warm=norm == "L1")
    return x_adv


def start_on_edge(x: Tensor, eps: Radius, norm: Norm, draws: Draws) -> Tensor:
    """A random point on the edge of the first stage's ball, cut at the box."""
    if norm == "L1":
        delta = draws.normal(x.shape[1:], "apgd/start").to(x)
        return x + project_in_box(x, delta, L1_STAGES[0][0] * eps, norm)
    delta = draw_in_ball(x, 1.0, norm, draws, "apgd/start")
    return (x + beside(eps, x) * delta / per_example(size(delta, norm), delta)).clamp(0, 1)
