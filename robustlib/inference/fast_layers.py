"""Layers of the search copy that do the same as PyTorch's in less time, or, on a CPU, with steadier bits."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# The integers whose bits these floats are. Those of floats that are not negative have the same order as the floats,
# and those of negative ones lie below: all that a maximum with zero needs.
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}

# Rows of each product of a linear layer: some CPUs sum up in another order for other numbers of rows, and in bfloat16,
# where they are more than these, for other numbers of threads (measured with AMX).
ROWS = 32


class Wide(nn.Module):
    """A layer that stays in float32 when the network around it is cast, and goes where that goes."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Wide":
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self


class WideLinear(Wide):
    """A linear layer in float32, and what it gives too: logits, which bfloat16 would round to two decimals."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float())


class SteadyLinear(nn.Module):
    """A linear layer called with `ROWS` rows at a time, so that a row's bits do not depend on how many there are."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        n = len(rows)
        if n % ROWS:
            rows = F.pad(rows, (0, 0, 0, ROWS - n % ROWS))
        parts = [self.linear(part) for part in rows.split(ROWS)]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found[:n].reshape(*x.shape[:-1], found.shape[-1])


class HalvingPool(nn.Module):
    """Max-pooling of two by two pixels. Without a gradient to come, by comparing rows, then columns: on a CPU that
    takes half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or (torch.is_grad_enabled() and x.requires_grad):
            return F.max_pool2d(x, 2)
        x = even(x)
        x = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])
        return torch.maximum(x[:, :, :, 0::2], x[:, :, :, 1::2])


class ReluPool(nn.Module):
    """Max-pooling of two by two pixels with ReLU, in either order.

    On a CPU by comparing the floats' bits as integers, which takes half to a third of the time, there and back. A NaN
    may be taken for a negative number there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.dtype not in BITS:
            return F.relu(F.max_pool2d(x, 2))
        return Halving.apply(even(x))  # pyright: ignore[reportReturnType]


class Halving(torch.autograd.Function):
    """Of four pixels the largest, if it is positive, which then gets all of the gradient; of equal ones the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        bits = x.view(BITS[x.dtype])
        rows = torch.maximum(bits[:, :, 0::2], bits[:, :, 1::2])
        pooled = torch.maximum(rows[:, :, :, 0::2], rows[:, :, :, 1::2]).clamp_min_(0)
        ctx.save_for_backward(bits, rows, pooled)
        return pooled.view(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        bits, rows, pooled = ctx.saved_tensors
        live = pooled.sign().mul_(gradients[0].view(bits.dtype))
        columns = scatter(live, rows[:, :, :, 0::2], rows[:, :, :, 1::2], torch.empty_like(rows), 3)
        back = scatter(columns, bits[:, :, 0::2], bits[:, :, 1::2], torch.empty_like(bits), 2)
        return back.view(gradients[0].dtype)


def scatter(gradient: Tensor, first: Tensor, second: Tensor, into: Tensor, axis: int) -> Tensor:
    """The gradient where the larger of the two was, zero at the other, one after the other along an axis of `into`."""
    places = [slice(None)] * axis
    one, other = into[(*places, slice(0, None, 2))], into[(*places, slice(1, None, 2))]
    torch.gt(second, first, out=other)
    other.mul_(gradient)
    torch.sub(gradient, other, out=one)
    return into


def even(x: Tensor) -> Tensor:
    """Without a last row or column that has no partner."""
    return x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
