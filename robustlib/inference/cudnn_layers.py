"""A convolution with the addition and the ReLU after it as one call of cuDNN, and its gradient by the images.

PyTorch makes three kernels of these, which read and write all activations each, and several more on the way back. On
other devices than CUDA the same is computed by ordinary calls, for tests; no copy is made so there.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel of a two-dimensional convolution goes over the image; padding is of zeros."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def size(self, image: torch.Size, weight: torch.Size) -> torch.Size:
        """The shape of what the convolution of an image batch of this shape gives."""
        sides = zip(image[2:], weight[2:], *self[:3], strict=True)
        return torch.Size(
            [image[0], weight[0], *((n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in sides)]
        )


class ConvRelu(nn.Module):
    """relu(conv(x)), or relu(conv(x) + addend).

    conv: has the weights, which may change.  masked: the gradient is zero where the ReLU gives zero. False where a ReLU
    after a max-pooling sees to that, on fewer values: the pooling gives the gradient to the largest of a window, which
    is zero only if all are.
    Raises TypeError for an addend of another dtype than the images, RuntimeError where it is larger than what it is
    added to, or where cuDNN has no such convolution on this device.
    """

    def __init__(self, conv: nn.Module, geometry: Geometry, masked: bool = True):
        super().__init__()
        self.conv = conv
        self.geometry = geometry
        self.masked = masked

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        weight: Any = self.conv.weight
        if addend is not None:
            if addend.dtype != x.dtype:  # cuDNN would read it as the images' dtype
                raise TypeError(f"expected an addend of {x.dtype}, got {addend.dtype}")
            addend = addend.expand(self.geometry.size(x.shape, weight.shape))
        return Fused.apply(x, weight, self.conv.bias, addend, self.geometry, self.masked)  # pyright: ignore[reportReturnType]


class Fused(torch.autograd.Function):
    """The same with a gradient by x and by the addend; none by the weights, which in a copy want none."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, geometry: Geometry, masked: bool
    ) -> Tensor:
        compute = one_call if x.is_cuda else ordinary_calls
        y = compute(x, weight, bias, addend, geometry)
        ctx.save_for_backward(x, weight, y if masked else None)
        ctx.geometry = geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, y = ctx.saved_tensors
        gradient = gradients[0] if y is None else torch.ops.aten.threshold_backward(gradients[0], y, 0)
        by_x = input_gradient(gradient, x, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        return by_x, None, None, gradient if ctx.needs_input_grad[3] else None, None, None


def one_call(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, geometry: Geometry) -> Tensor:
    """By cuDNN. What is added is scaled by 1 there."""
    if addend is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, addend, 1.0, bias, *geometry)


def ordinary_calls(x: Tensor, weight: Tensor, bias: Tensor, addend: Tensor | None, geometry: Geometry) -> Tensor:
    """The plain form, on any device."""
    y = F.conv2d(x, weight, bias, *geometry)
    return F.relu(y if addend is None else y + addend)


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution's gradient by x alone."""
    how = (*geometry[:3], False, (0, 0), geometry.groups)  # not transposed, no padding of the output
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, *how, [True, False, False])[0]
