"""The proposals of Square in L2 and L1: budget moved from one window of the image into a bump in another."""

import math

import torch
from torch import Tensor

from robustlib.arguments import Norm
from robustlib.norms import per_example, project_in_box, size
from robustlib.rng import Draws

TINY = 1e-12


def signs(draws: Draws, shape: tuple[int, ...], stream: str, like: Tensor) -> Tensor:
    return torch.where(draws.uniform(shape, stream) < 0.5, -1.0, 1.0).to(like)


def corners(numbers: Tensor, side: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """How far down and right each example's window of this side lies, from two random numbers a row."""
    found = [(numbers[:, axis] * (x.shape[2 + axis] - side + 1)).long() for axis in (0, 1)]
    down, right = (place.clamp_max(x.shape[2 + axis] - side) for axis, place in enumerate(found))
    return down, right


def window(numbers: Tensor, side: int, x: Tensor) -> Tensor:
    """Which pixels each example's random window covers, shape (B, 1, H, W)."""
    down, right = corners(numbers, side, x)
    rows = torch.arange(x.shape[2], device=x.device) - down[:, None]
    columns = torch.arange(x.shape[3], device=x.device) - right[:, None]
    rows, columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return rows[:, None, :, None] & columns[:, None, None, :]


def bump(side: int, like: Tensor) -> Tensor:
    """Two opposite heaps of pixels, of size 1 in L2, shape (side, side): the pattern of the L2 and L1 attacks.

    Each heap adds rectangles that grow from its centre, the k-th of height 1 / k^2.
    """
    upper = side // 2
    return torch.cat([heap(upper, side, like), -heap(side - upper, side, like)]) / math.sqrt(2)


def heap(height: int, width: int, like: Tensor) -> Tensor:
    found = like.new_zeros(height, width)
    top, left = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        found[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    return found / found.square().sum().sqrt().clamp_min(TINY)


def tiles(x: Tensor, eps: Tensor, norm: Norm, draws: Draws) -> Tensor:
    """The first guess in L2 and L1: a grid of five by five bumps with random signs."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    pattern = bump(side, x) if side > 1 else x.new_ones(1, 1)
    down, across = height // side, width // side
    sides = signs(draws, (channels, down, across), "square/tiles", x)
    delta = torch.zeros_like(x)
    tiled = sides.repeat_interleave(side, 2).repeat_interleave(side, 3) * pattern.repeat(down, across)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = tiled
    return x + fit(x, delta, eps, norm)


def fit(x: Tensor, delta: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The perturbation scaled up to the whole budget, then brought into the ball and the box."""
    used = size(delta, norm)
    scaled = delta * per_example(
        (used.clamp_min(TINY).reciprocal() * eps.to(x)).clamp_min(1 if norm == "L1" else 0), delta
    )
    return project_in_box(x, scaled, eps, norm)


def propose_bump(x: Tensor, x_adv: Tensor, side: int, eps: Tensor, norm: Norm, numbers: Tensor) -> Tensor:
    """The budget of one random window, and what is unused, moved into a bump in another. numbers: (B, 5 + channels)."""
    delta, channels = x_adv - x, x.shape[1]
    into, away = window(numbers[:, :2], side, x), window(numbers[:, 2:4], side, x)
    pattern = place_bump(x, into, side, numbers[:, 4:])
    inside = delta * into
    pattern = pattern + inside / per_channel(inside, norm).clamp_min(TINY)
    pattern = pattern / per_channel(pattern, norm).clamp_min(TINY)
    both = per_channel(delta * (into | away), norm)
    used, radius = per_example(size(delta, norm), x), per_example(eps, x)
    if norm == "L2":
        strength = (((radius**2).to(x) - used**2).clamp_min(0) / channels + both**2).sqrt()
    else:
        strength = (radius.to(x) - used).clamp_min(0) / channels + both
    moved = torch.where(into, pattern * strength, torch.where(away, 0, delta))
    return (x + fit(x, moved, eps, norm)).clamp(0, 1)


def per_channel(delta: Tensor, norm: Norm) -> Tensor:
    """Size of each channel of each example, (B, C, 1, 1)."""
    if norm == "L1":
        return delta.abs().sum((2, 3), keepdim=True)
    return delta.square().sum((2, 3), keepdim=True).sqrt()


def place_bump(x: Tensor, into: Tensor, side: int, numbers: Tensor) -> Tensor:
    """A bump in each example's window, upright or lying, with a random sign a channel. numbers: (B, 1 + channels)."""
    shape = bump(side, x) if side > 1 else x.new_ones(1, 1)
    lying = (numbers[:, :1] < 0.5)[:, :, None]
    shapes = torch.where(lying, shape.T, shape)  # (B, side, side)
    placed = torch.zeros(len(x), *x.shape[2:], device=x.device, dtype=x.dtype)
    placed.masked_scatter_(into[:, 0], shapes)
    return placed[:, None] * torch.where(numbers[:, 1:] < 0.5, -1.0, 1.0).to(x)[:, :, None, None]
