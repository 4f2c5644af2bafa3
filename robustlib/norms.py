"""What differs by norm: the size of a perturbation, its projection, its steepest direction, a random draw.

Every function takes perturbations of shape (B, ...) and treats each example by itself.
"""

import torch
from torch import Tensor

from robustlib.draws import Draws
from robustlib.settings import NORMS, Norm

TINY = 1e-12


def unknown(norm: object) -> ValueError:
    return ValueError(f"unknown norm {norm!r}, expected one of: {', '.join(NORMS)}")


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Shape (B,) values so that they multiply a (B, ...) tensor example by example."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def size(delta: Tensor, norm: Norm) -> Tensor:
    """Size of each perturbation, shape (B,)."""
    flat = delta.flatten(1)
    match norm:
        case "Linf":
            return flat.abs().amax(1)
        case "L2":
            return flat.norm(dim=1)
    raise unknown(norm)


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """Size of each gradient in the norm dual to `norm`: a linear function grows by this much per unit of distance."""
    flat = gradient.flatten(1)
    match norm:
        case "Linf":
            return flat.abs().sum(1)
        case "L2":
            return flat.norm(dim=1)
    raise unknown(norm)


def project(delta: Tensor, eps: float, norm: Norm) -> Tensor:
    """Nearest point of the eps-ball. What lies inside stays where it is."""
    match norm:
        case "Linf":
            return delta.clamp(-eps, eps)
        case "L2":
            return delta * per_example((eps / size(delta, "L2").clamp_min(TINY)).clamp_max(1), delta)
    raise unknown(norm)


def ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of size 1 along which a linear function with this gradient grows fastest; zero where it is zero."""
    match norm:
        case "Linf":
            return gradient.sign()
        case "L2":
            return gradient / per_example(size(gradient, "L2").clamp_min(TINY), gradient)
    raise unknown(norm)


def draw_in_ball(like: Tensor, eps: float, norm: Norm, draws: Draws, stream: str) -> Tensor:
    """A point drawn uniformly from the eps-ball around zero, for each example its own."""
    match norm:
        case "Linf":
            return (2 * draws.uniform(like.shape[1:], f"{stream}/direction").to(like) - 1) * eps
        case "L2":
            direction = ascent(draws.normal(like.shape[1:], f"{stream}/direction").to(like), "L2")
            dimensions = like[0].numel()
            radius = draws.uniform((1,), f"{stream}/radius").to(like).flatten() ** (1 / dimensions)
            return direction * per_example(eps * radius, like)
    raise unknown(norm)


def inside(x_adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Which images keep the budget: in the box and within eps (1 + 1e-5) of x, by float32 arithmetic. Shape (B,)."""
    in_box = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    # An absolute 1e-7 besides: the spacing of float32 near 1, which x + delta - x cannot beat at a tiny eps.
    return in_box & (size(x_adv - x, norm) <= eps * (1 + 1e-5) + torch.finfo(torch.float32).eps)
