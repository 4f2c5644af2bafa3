"""Deletion and insertion: how the class's probability goes as an attribution's pixels are hidden or brought back."""

import torch
from torch import Tensor, nn

from robustlib.explanations.measures import most, pixel_map
from robustlib.inference.batch_sizes import groups
from robustlib.inference.oracle import as_oracle
from robustlib.losses import pick


def deletion(
    model: nn.Module, x: Tensor, target: Tensor, attribution: Tensor, *, steps: int = 16, baseline: float = 0.0
) -> Tensor:
    """The area under the target's probability while pixels are hidden, the most important first, Petsiuk et al. 2018,
    https://arxiv.org/abs/1806.07421; in [0, 1], float64, shape (B,). Lower is better.

    x: images in [0, 1], shape (B, C, H, W).  attribution: shape (B, 1 or C, H, W).  steps: equal numbers of pixels,
    between which the curve is straight.  baseline: the value of what is hidden.
    """
    return area(model, x, target, attribution, steps, baseline, insert=False)


def insertion(
    model: nn.Module, x: Tensor, target: Tensor, attribution: Tensor, *, steps: int = 16, baseline: float = 0.0
) -> Tensor:
    """The same while pixels come back into an image of the baseline, the most important first. Higher is better."""
    return area(model, x, target, attribution, steps, baseline, insert=True)


def area(
    model: nn.Module, x: Tensor, target: Tensor, attribution: Tensor, steps: int, baseline: float, *, insert: bool
) -> Tensor:
    oracle = as_oracle(model)
    order = pixel_map(attribution).flatten(1).sort(dim=1, descending=True, stable=True).indices
    rank = order.argsort(1).reshape(len(x), 1, *x.shape[-2:])
    pixels = rank[0].numel()
    curve: list[Tensor] = []
    for chosen in groups(steps + 1, oracle.at_once(x)):
        changed = torch.stack([rank < (0 if k == 0 else most(k / steps, pixels)) for k in chosen])
        images = torch.where(changed == insert, x, baseline).flatten(0, 1)
        found = pick(oracle.logits(images).double().softmax(1), target.repeat(len(chosen)))
        curve += list(found.reshape(len(chosen), len(x)))
    # The trapezoidal rule, one point after the other: a sum over a dimension has other last bits for other batches.
    found = (curve[0] + curve[-1]) / 2
    for values in curve[1:-1]:
        found = found + values
    return found / steps
