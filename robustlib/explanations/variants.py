"""Variants of images of which parts are hidden, several of each in a batch."""

import torch
from torch import Tensor

from robustlib.inference.batch_sizes import groups
from robustlib.inference.oracle import Oracle
from robustlib.losses import pick


def squares(x: Tensor, grid: int) -> Tensor:
    """The part of the image that each pixel belongs to, of grid x grid of them, int64, shape (H, W).

    Parts are rectangles that differ by a pixel at most where the side is no multiple of the grid.
    Raises ValueError for a grid finer than the image.
    """
    height, width = x.shape[-2:]
    if grid > min(height, width):
        raise ValueError(f"expected a grid of at most {min(height, width)} for {height}x{width} images, got {grid}")
    rows = torch.arange(height, device=x.device) * grid // height
    columns = torch.arange(width, device=x.device) * grid // width
    return rows[:, None] * grid + columns


def with_parts(x: Tensor, kept: Tensor, parts: Tensor, baseline: float) -> Tensor:
    """Images of which only some parts are left, shape (V * B, C, H, W), all images of the first variant first.

    kept: which parts are, bool, shape (V, B, parts).  parts: of each pixel, shape (H, W).  baseline: of the others.
    """
    shown = kept.index_select(2, parts.flatten()).reshape(*kept.shape[:2], 1, *parts.shape)
    return torch.where(shown, x, baseline).flatten(0, 1)


def answers(oracle: Oracle, x: Tensor, target: Tensor, kept: Tensor, parts: Tensor, baseline: float) -> Tensor:
    """The target's logit of each variant of each image, float64, shape (V, B). Arguments: see `with_parts`."""
    found = torch.empty(kept.shape[:2], dtype=torch.float64, device=x.device)
    for places in groups(len(kept), oracle.at_once(x)):
        chosen = slice(places.start, places.stop)
        logits = oracle.logits(with_parts(x, kept[chosen], parts, baseline))
        found[chosen] = pick(logits, target.repeat(len(places))).double().reshape(len(places), len(x))
    return found


def spread(values: Tensor, parts: Tensor) -> Tensor:
    """A value of each part of each image, (B, parts), at each of its pixels, float32, shape (B, 1, H, W)."""
    return values[:, None, parts].float()
