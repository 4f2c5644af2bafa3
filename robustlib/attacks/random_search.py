"""Random search: points of the ball drawn one after the other, until one is misclassified."""

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.losses import margin, misclassified
from robustlib.norms import added, ascent_step, draw_in_ball
from robustlib.rng import Draws, default_draws


@checked
@torch.no_grad()
def noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: float = 8 / 255,
    queries: int = 1000,
    draws: Draws | None = None,
    spent: Tensor | None = None,
) -> Tensor:
    """Random search: points of the ball, every other on its edge; what an attack with as many queries must beat.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps: in units of x.
    queries: points for each image, at most.  spent: filled in with those of each image, int64, shape (B,).
    An image is done with as soon as it is misclassified.
    Returns x_adv, shaped like x, in the box and the eps-ball: misclassified, or the point of the largest margin.
    Source: Carlini et al. 2019, https://arxiv.org/abs/1902.06705, section 4.
    """
    oracle, draws = as_oracle(model), default_draws(x, draws)
    found, live = x.clone(), torch.arange(len(x), device=x.device)
    used, highest = torch.zeros_like(y), torch.full_like(x[:, 0, 0, 0], -torch.inf)
    for query in range(queries):
        images, classes = x[live], y[live]
        delta = draw_in_ball(images, eps, norm, draws[live], f"noise/{query}")
        if query % 2:  # corners in Linf, the sphere in L2, few pixels in L1
            delta = ascent_step(images, delta, eps, norm)
        point = added(images, delta, norm).clamp(0, 1)
        logits = oracle.logits(point)
        fell = oracle.is_done(point, classes, misclassified(logits, classes))
        used[live] += 1
        gap = margin(logits, classes)
        taken = fell | (gap > highest[live])
        highest[live] = highest[live].maximum(gap)
        found[live[taken]] = point[taken]
        live = live[~fell]
        if len(live) == 0:
            break
    if spent is not None:
        spent.copy_(used)
    return found
