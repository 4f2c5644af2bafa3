"""Norms and all that differs by them: the size of a perturbation, its projection, steepest direction, a random draw.

Every function takes perturbations of shape (B, ...) and treats each example by itself.
"""

import math
from typing import Any

import torch
from torch import Tensor

from robustlib import names
from robustlib.arguments import NORMS, Norm
from robustlib.rng import Draws

Radius = float | Tensor  # one for all, or a tensor of each example's own, shape (B,)

TINY = 1e-12
SPARSE = 0.01  # share of the coordinates that a direction of steepest ascent in L1 spreads over
# Numbers whose squares are summed at once: in float32 a sum of 100,000 is off by up to 1e-4, one of 4096 by 4e-6.
BLOCK = 4096


def unknown(norm: object) -> ValueError:
    return ValueError(names.unknown("norm", norm, NORMS))


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) values so that they multiply a (B, ...) tensor example by example."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def beside(value: Radius, like: Tensor) -> Radius:
    """A radius so that it meets a (B, ...) tensor example by example."""
    return per_example(value.to(like), like) if isinstance(value, Tensor) else value


def looks(tensor: Tensor) -> bool:
    """Whether Python may look at the tensor's numbers at no cost: on a device it waits, and no recording holds it."""
    return tensor.device.type == "cpu"


def either(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The one's rows where the mask (B,) is true, else the other's. It may be one of them, so nobody writes into it.

    On a CPU only those rows are moved that are fewer, which takes a quarter of the time of `torch.where`.
    """
    if not looks(mask):
        return torch.where(per_example(mask, one), one, other)
    few, most, rows = one, other, mask.nonzero().squeeze(1)
    if 2 * len(rows) > len(mask):
        few, most, rows = other, one, (~mask).nonzero().squeeze(1)
    return most if len(rows) == 0 else most.index_copy(0, rows, few.index_select(0, rows))


def chosen(value: Radius, rows: Tensor) -> Radius:
    """The radius of these rows."""
    return value[rows] if isinstance(value, Tensor) else value


def size(delta: Tensor, norm: Norm) -> Tensor:
    """Size of each perturbation, shape (B,)."""
    flat = delta.flatten(1)
    match norm:
        case "Linf":
            return flat.abs().amax(1)
        case "L2":
            if flat.shape[1] > BLOCK:
                flat = torch.stack([part.norm(dim=1) for part in flat.split(BLOCK, 1)], 1)
            return flat.norm(dim=1)
        case "L1":
            return flat.abs().sum(1)
    raise unknown(norm)


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """Size of each gradient in the norm dual to `norm`: a linear function grows by this much per unit of distance."""
    flat = gradient.flatten(1)
    match norm:
        case "Linf":
            return flat.abs().sum(1)
        case "L2":
            return size(gradient, "L2")
        case "L1":
            return flat.abs().amax(1)
    raise unknown(norm)


def project(delta: Tensor, eps: Radius, norm: Norm) -> Tensor:
    """Nearest point of the eps-ball. What lies inside stays where it is."""
    match norm:
        case "Linf":
            limit: Any = beside(eps, delta)
            return delta.clamp(-limit, limit)
        case "L2":
            used = per_example(size(delta, "L2").clamp_min(TINY), delta)
            return delta * (used.reciprocal() * beside(eps, delta)).clamp_max(1)
        case "L1":
            return shrink(delta, torch.full_like(delta, torch.inf), eps)
    raise unknown(norm)


def project_in_box(x: Tensor, delta: Tensor, eps: Radius, norm: Norm) -> Tensor:
    """The perturbation in the eps-ball with x + perturbation in [0, 1] that an attack goes on with.

    The nearest one for Linf and L1; for L2 the nearest in the ball, cut at the box, as AutoAttack does it.
    """
    if norm == "L1":
        # Cut at the box after a projection on the ball, an L1 perturbation would lose most of its budget.
        return added(x, shrink(delta, room_for(delta, x), eps), norm) - x
    return (x + project(delta, eps, norm)).clamp(0, 1) - x


def room_for(direction: Tensor, x: Tensor) -> Tensor:
    """How far each pixel can go within the box in its own direction, shaped like x."""
    return torch.where(direction > 0, 1 - x, x)


def added(x: Tensor, delta: Tensor, norm: Norm) -> Tensor:
    """x + delta, in L1 rounded towards x."""
    point = x + delta
    if norm == "L1":
        # Rounded to the nearest, thousands of pixels that are alike stray alike, and their sum leaves the ball.
        point = torch.where((point - x).abs() > delta.abs(), point.nextafter(x), point)
    return point


def shrink(delta: Tensor, room: Tensor, eps: Radius) -> Tensor:
    """The nearest point with |point| <= room in every coordinate and L1 size of at most eps.

    It is sign(delta) clamp(|delta| - t, 0, room) with the smallest t >= 0 for which the size is at most eps. The size
    falls with t in straight pieces between |delta| - room and |delta|: sorted, they give t exactly. In float64: sums
    over an image's pixels are differences of large numbers here.
    """
    high = delta.flatten(1).double().abs()
    cap = torch.minimum(high, room.flatten(1))
    low = high - cap
    at, order = torch.cat([low, high], 1).sort(1)
    slope = torch.where(order < high.shape[1], 1.0, -1.0).to(high).cumsum(1)  # coordinates that fall with t
    fallen = (slope[:, :-1] * at.diff(dim=1)).cumsum(1)
    excess = (cap.sum(1, keepdim=True) - beside(eps, cap)).clamp_min(0)
    piece = (fallen < excess).sum(1, keepdim=True).clamp_max(fallen.shape[1] - 1)
    # Within its piece, backwards from the piece's end.
    over = (fallen.gather(1, piece) - excess).clamp_min(0) / slope.gather(1, piece).clamp_min(1)
    t = torch.where(excess > 0, at.gather(1, piece + 1) - over, 0)
    return (high - t).clamp_min(0).minimum(cap).to(delta).reshape(delta.shape) * delta.sign()


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of size 1 along which a linear function with this gradient grows fastest; zero where it is zero."""
    match norm:
        case "Linf":
            return gradient.sign()
        case "L2":
            return gradient / per_example(size(gradient, "L2").clamp_min(TINY), gradient)
        case "L1":
            # Spread over the steepest few, not put on one alone, which the box would stop: Tramer and Boneh 2019,
            # https://arxiv.org/abs/1904.13000.
            step = steepest(gradient, torch.full((len(gradient),), SPARSE, device=gradient.device)).sign()
            return step / per_example(size(step, "L1").clamp_min(1), step)
    raise unknown(norm)


def ascent_step(x: Tensor, gradient: Tensor, length: Radius, norm: Norm, most: float | None = None) -> Tensor:
    """The step of this length from x along which a linear function with this gradient grows fastest. In L1 it keeps to
    the box: the steepest pixels go as far as they can, one after the other, until the length is used up.

    x: images in [0, 1], shape (B, ...).  most: in L1, how far one pixel may go; where none is given, as far as spreads
    the step over a hundredth of the pixels.  Returns the step, shaped like x.
    """
    if norm != "L1":
        return beside(length, x) * ascent(gradient, norm)
    slope = gradient.flatten(1)
    steep, order = slope.abs().sort(dim=1, descending=True, stable=True)
    room = room_for(slope, x.flatten(1)).double().gather(1, order)
    limit: Any = beside(length, room) / max(int(SPARSE * slope.shape[1]), 1) if most is None else most
    room = torch.where(
        steep > 0,
        room.clamp_min(0).minimum(limit if isinstance(limit, Tensor) else torch.full((), limit, device=room.device)),
        0,
    )
    used = room.cumsum(1) - room
    taken = (beside(length, room) - used).clamp_min(0).minimum(room).to(x)
    return (torch.zeros_like(slope).scatter(1, order, taken) * slope.sign()).reshape(x.shape)


def steepest(gradient: Tensor, share: Tensor) -> Tensor:
    """The gradient with all but the given share (B,) of its largest coordinates, at least one, set to zero."""
    flat = gradient.flatten(1).abs()
    places = flat.shape[1]
    kept = (share * places).long().clamp(1, places)
    least = flat.sort(1, descending=True).values.gather(1, kept[:, None] - 1)
    return torch.where((flat >= least).reshape(gradient.shape), gradient, 0)


def draw_in_ball(like: Tensor, eps: Radius, norm: Norm, draws: Draws, stream: str) -> Tensor:
    """A point drawn uniformly from the eps-ball around zero, for each example its own."""
    match norm:
        case "Linf":
            return (2 * draws.uniform(like.shape[1:], f"{stream}/direction").to(like) - 1) * beside(eps, like)
        case "L2":
            direction = ascent(draws.normal(like.shape[1:], f"{stream}/direction").to(like), "L2")
            dimensions = like.shape[1:].numel()
            radius = draws.uniform((1,), f"{stream}/radius").to(like).flatten() ** (1 / dimensions)
            return direction * (beside(eps, like) * per_example(radius, like))
        case "L1":
            # Exponential numbers over their sum, that of one more among them, are uniform in the simplex.
            falls = -(1 - draws.uniform((like.shape[1:].numel() + 1,), f"{stream}/falls")).log().to(like)
            sides = draws.uniform(like.shape[1:], f"{stream}/direction").to(like) < 0.5
            weight = (falls[:, :-1] / falls.sum(1, keepdim=True)).reshape(like.shape)
            return beside(eps, like) * torch.where(sides, -weight, weight)
    raise unknown(norm)


def draw_on_sphere(like: Tensor, eps: Radius, norm: Norm, draws: Draws, stream: str) -> Tensor:
    """A perturbation of size eps drawn for each example: in Linf every coordinate is eps or -eps, in L2 and L1 the
    direction is that of `draw_in_ball`.
    """
    if norm == "Linf":
        return draws.signs(tuple(like.shape[1:]), f"{stream}/direction").to(like) * beside(eps, like)
    point = draw_in_ball(like, 1.0, norm, draws, stream)
    return point * per_example(size(point, norm).clamp_min(TINY).reciprocal(), like) * beside(eps, like)


def inside(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Which images keep the budget: in the box and within eps (1 + 1e-5) of x, by float32 arithmetic. Shape (B,)."""
    flat = x_adv.flatten(1)
    in_box = (flat.amin(1) >= 0) & (flat.amax(1) <= 1)  # of an image with a NaN both are NaN
    # An absolute 1e-7 besides: the spacing of float32 near 1, which x + delta - x cannot beat at a tiny eps. In L2 that
    # of pixels that are alike adds up, each rounded by up to a quarter of it.
    rounding = torch.finfo(torch.float32).eps * (max(math.sqrt(flat.shape[1]) / 4, 1) if norm == "L2" else 1)
    return in_box & (size(x_adv - x, norm) <= eps * (1 + 1e-5) + rounding)
