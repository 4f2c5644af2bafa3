"""Transfer attacks: attacked images are made on another network, a surrogate, and tried on the model."""

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.pgd import Run, anywhere, climb, reach
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.losses import LossName, misclassified
from robustlib.rng import Draws, default_draws


@checked
@torch.no_grad()
def transfer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    surrogate: nn.Module | None = None,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    steps: int = 50,
    step_size: float | None = None,
    loss: LossName = "margin",
    queries: int = 1,
    draws: Draws | None = None,
    spent: Tensor | None = None,
) -> Tensor:
    """PGD on a surrogate's gradients, Papernot et al. 2017, https://arxiv.org/abs/1602.02697: needs none of the model.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).
    surrogate: a network with a gradient and the model's classes; that it is fooled ends nothing.  eps, step_size: in
    units of x; the step is 2.5 eps / steps where none is given.  steps, loss: of the search on it, as for `pgd`.
    queries: how often the model is asked on the way, evenly, the last time at the end: an image is done with as soon as
    it is misclassified.  spent: filled in with the queries of each image, int64, shape (B,).
    Returns x_adv, shaped like x, in the box and the eps-ball. Raises ValueError without a surrogate.
    """
    if surrogate is None:
        raise ValueError("transfer expects a surrogate to make its images on, got none")
    oracle, draws = as_oracle(model), default_draws(x, draws)
    step_size = 2.5 * eps / max(steps, 1) if step_size is None else step_size
    used, found, live = torch.zeros_like(y), x.clone(), torch.arange(len(x), device=x.device)
    source, x_adv, most = as_oracle(surrogate), anywhere(x, eps, norm, draws), reach(steps)
    for part in parts(steps, queries):
        run = Run(x=x, y=y, x_adv=x_adv, eps=eps, step_size=step_size)
        x_adv = climb(source, run, norm, loss, part, most)
        found[live] = x_adv
        used[live] += 1
        going = ~oracle.is_done(x_adv, y, misclassified(oracle.logits(x_adv), y))
        live, x, y, x_adv = live[going], x[going], y[going], x_adv[going]
        if len(live) == 0:
            break
    if spent is not None:
        spent.copy_(used)
    return found


def parts(steps: int, queries: int) -> list[int]:
    """So many steps cut into as many parts as there are queries, nearly alike; a query needs a step."""
    count = max(1, min(queries, steps))
    return [steps * (i + 1) // count - steps * i // count for i in range(count)]
