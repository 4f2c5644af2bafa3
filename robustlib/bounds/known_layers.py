"""Layers of a model that bounds know, by the modules and functions that a traced graph calls."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustlib.bounds.layers import Layer, Linear, MaxPool, Relu, Reshape, ScaleShift, Shape, average, convolution
from robustlib.inference.graph_rewriting import pair


class UnknownLayer(ValueError):
    """A model has a layer of which no bounds are known."""


def detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().float()


def read_convolution(layer: nn.Conv2d, before: Shape, after: Shape) -> Layer:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UnknownLayer(f"Conv2d with padding {layer.padding!r}, {layer.padding_mode}")
    stride, padding, dilation = (pair(each) for each in (layer.stride, layer.padding, layer.dilation))
    weight, bias = layer.weight.detach().float(), detached(layer.bias)
    return convolution(weight, bias, stride, padding, dilation, layer.groups, before, after)


def read_linear(layer: nn.Linear, before: Shape, after: Shape) -> Layer:
    if len(before) != 1:
        raise UnknownLayer("Linear on more than one dimension")
    return Linear(layer.weight.detach().float(), detached(layer.bias), layer.weight.numel())


def read_norm(layer: nn.BatchNorm2d | nn.BatchNorm1d, before: Shape, after: Shape) -> Layer:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise UnknownLayer("BatchNorm with the statistics of its batch")
    scale = (layer.running_var + layer.eps).rsqrt()
    scale = scale if layer.weight is None else scale * layer.weight
    shift = -layer.running_mean * scale + (0 if layer.bias is None else layer.bias)
    return ScaleShift(*(each.detach().reshape(-1, *[1] * (len(before) - 1)) for each in (scale, shift)))


def torchvision_normalisation(layer: Any, before: Shape, after: Shape) -> Layer:
    mean, std = (torch.as_tensor(each, dtype=torch.float32).reshape(-1, 1, 1) for each in (layer.mean, layer.std))
    return ScaleShift(1 / std, -mean / std)


def read_max_pool(layer: nn.MaxPool2d, before: Shape, after: Shape) -> Layer:
    if layer.return_indices or layer.ceil_mode or pair(layer.dilation) != (1, 1):
        raise UnknownLayer("MaxPool2d with indices, ceil_mode or dilation")
    return MaxPool(before, pair(layer.kernel_size), pair(layer.stride or layer.kernel_size), pair(layer.padding))


def read_average_pool(layer: nn.AvgPool2d, before: Shape, after: Shape) -> Layer:
    padding = pair(layer.padding)
    if layer.ceil_mode or layer.divisor_override or (padding != (0, 0) and not layer.count_include_pad):
        raise UnknownLayer("AvgPool2d with ceil_mode, a divisor or padding that does not count")
    return average(before[0], pair(layer.kernel_size), pair(layer.stride or layer.kernel_size), padding, before, after)


def read_adaptive_pool(layer: object, before: Shape, after: Shape) -> Layer:
    if any(size % into for size, into in zip(before[1:], after[1:], strict=True)):
        raise UnknownLayer("adaptive pooling to sizes that do not divide")
    kernel = (before[1] // after[1], before[2] // after[2])
    return average(before[0], kernel, kernel, (0, 0), before, after)


def read_reshape(layer: object, before: Shape, after: Shape) -> Layer | None:
    if prod(before) != prod(after):
        raise UnknownLayer("a reshape that mixes examples")
    return None if before == after else Reshape(before, after)


def read_relu(layer: object, before: Shape, after: Shape) -> Layer:
    return Relu()


def read_nothing(layer: object, before: Shape, after: Shape) -> None:
    return None


def read_dropout(layer: nn.Dropout | nn.Dropout2d, before: Shape, after: Shape) -> None:
    if layer.training:
        raise UnknownLayer("Dropout that is random")


MODULES: tuple[tuple[type[nn.Module], Callable[..., Layer | None]], ...] = (
    (nn.Conv2d, read_convolution),
    (nn.Linear, read_linear),
    (nn.BatchNorm2d, read_norm),
    (nn.BatchNorm1d, read_norm),
    (nn.ReLU, read_relu),
    (nn.MaxPool2d, read_max_pool),
    (nn.AvgPool2d, read_average_pool),
    (nn.AdaptiveAvgPool2d, read_adaptive_pool),
    (nn.Flatten, read_reshape),
    (nn.Identity, read_nothing),
    (nn.Dropout, read_dropout),
    (nn.Dropout2d, read_dropout),
)


def as_module(kind: type[nn.Module], read: Callable[..., Layer | None], function: Any) -> Callable[..., Layer | None]:
    """A function read as the module that does the same; its arguments are given by the names of the module's."""

    def read_function(node: fx.Node, before: Shape, after: Shape) -> Layer | None:
        try:
            bound = function(*node.args[1:], **node.kwargs)
            return read(kind(**bound), before, after)
        except TypeError as error:
            raise UnknownLayer(f"{node.target} with other arguments") from error

    return read_function


def pool_arguments(
    kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return locals()


def average_arguments(
    kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    return locals()


def read_dropout_function(node: fx.Node, before: Shape, after: Shape) -> None:
    training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
    if training is not False:
        raise UnknownLayer("dropout that is random")


FUNCTIONS: dict[str, Callable[..., Layer | None]] = {
    "relu": read_relu,
    "relu_": read_relu,
    "flatten": read_reshape,
    "view": read_reshape,
    "reshape": read_reshape,
    "contiguous": read_nothing,
    "max_pool2d": as_module(nn.MaxPool2d, read_max_pool, pool_arguments),
    "avg_pool2d": as_module(nn.AvgPool2d, read_average_pool, average_arguments),
    "adaptive_avg_pool2d": read_adaptive_pool,
    "dropout": read_dropout_function,
}
ARITHMETIC = {
    "add": "add", "iadd": "add", "sub": "sub", "isub": "sub", "mul": "mul", "imul": "mul", "truediv": "div",
    "itruediv": "div", "div": "div",
}  # fmt: skip
