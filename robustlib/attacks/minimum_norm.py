"""Parts that attacks share which look for the nearest misclassified image."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustlib.inference.oracle import Oracle
from robustlib.losses import misclassified
from robustlib.norms import Radius, per_example
from robustlib.rng import Draws


def from_true_side(oracle: Oracle, x: Tensor, y: Tensor, search: Callable[[Oracle, Tensor, Tensor], Tensor]) -> Tensor:
    """Search for those images that are classified correctly, with what classifies them so; the others are left."""
    claimed = misclassified(oracle.logits(x), y)
    x_adv = x.clone()
    for part, rows in [(oracle, (~claimed).nonzero().squeeze(1)), *oracle.misjudged(x, y, claimed)]:
        if len(rows):
            x_adv[rows] = search(part, x[rows], y[rows])
    return x_adv


def also_in_float32(
    oracle: Oracle, x: Tensor, y: Tensor, eps: Radius | None, draws: Draws,
    search: Callable[[Oracle, Tensor, Tensor, Radius | None, Draws], Tensor],
) -> Tensor:  # fmt: skip
    """Search for every image, also from a misclassified one, as FAB goes on from there; for those that rounding alone
    misclassifies, anew in float32.
    """
    x_adv = search(oracle, x, y, eps, draws)
    for finer, rows in oracle.misjudged(x, y, misclassified(oracle.logits(x), y)):
        x_adv[rows] = search(finer, x[rows], y[rows], eps[rows] if isinstance(eps, Tensor) else eps, draws[rows])
    return x_adv


def within(x: Tensor, best: Tensor, distance: Tensor, limit: Radius | None) -> Tensor:
    """The nearest misclassified images, or the original ones where they are not within the limit."""
    reached = distance <= (torch.finfo(x.dtype).max if limit is None else limit)
    return torch.where(per_example(reached, x), best, x)
