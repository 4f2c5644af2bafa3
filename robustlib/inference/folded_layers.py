"""Layers of a folded network: normalisation in float32, and operations whose weights are those of several layers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.fast_layers import Wide


class Normalized(Wide):
    """Normalisation in float32, on images as they lie, and then the network in its own precision and layout.

    Done in bfloat16 it would round images to half of 1/255; done channel by channel it would take as long as the first
    convolution.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, inner: nn.Module):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.inner = inner
        self.dtype, self.memory_format = torch.float32, torch.contiguous_format

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Normalized":
        self.inner._apply(fn, recurse)
        self.mean, self.std = (tensor.to(fn(tensor).device) for tensor in (self.mean, self.std))
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean).div_(self.std)
        if not x.is_cuda:
            x = x.to(self.dtype)  # at once with the layout takes a CPU twice the time
        return self.inner(x.to(self.dtype, memory_format=self.memory_format))


class Folded(nn.Module):
    """A convolution with the BatchNorm after it, or a convolution or linear layer alone, as one operation with weights
    of its own, which `refresh` takes from the layers as they are then.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None = None):
        super().__init__()
        self.sources = (layer, norm)  # in a tuple, so that what is done to this module is not done to them
        weight, bias = self.fused()
        self.register_buffer("weight", weight.clone())
        self.register_buffer("bias", bias.clone())

    @torch.no_grad()
    def fused(self) -> tuple[Tensor, Tensor]:
        layer, norm = self.sources
        bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
        if norm is None or norm.running_mean is None or norm.running_var is None:
            return layer.weight.detach(), bias.detach()
        mean, var = norm.running_mean, norm.running_var
        scale = (var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
        shift = 0 if norm.bias is None else norm.bias
        return layer.weight * scale[:, None, None, None], (bias - mean) * scale + shift

    @torch.no_grad()
    def refresh(self) -> None:
        weight, bias = self.fused()
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.sources[0]
        if isinstance(layer, nn.Linear):
            return F.linear(x, self.weight, self.bias)
        return layer._conv_forward(x, self.weight, self.bias)


def refresh(net: nn.Module) -> None:
    """Take the weights of what is folded anew."""
    for layer in net.modules():
        if isinstance(layer, Folded):
            layer.refresh()
