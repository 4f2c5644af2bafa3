"""Layers with what bounds ask of each: intervals forward, and linear functions back.

A layer is made from the shape of its input, without the batch. All work on one image: intervals have shape (1, ...).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.bounds.lines import ROUNDING, Lines, channels_last

Shape = tuple[int, ...]
Pair = tuple[int, int]


class Interval(NamedTuple):
    """What values lie between."""

    lower: Tensor
    upper: Tensor

    def within(self, other: "Interval") -> "Interval":
        """Where both hold."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))


class Layer(Protocol):
    """What bounds ask of a layer."""

    @property
    def products(self) -> int:
        """Multiplications of a row on its way back."""
        ...

    def value(self, *inputs: Tensor) -> Tensor:
        """What the layer gives out for values, shape (B, ...)."""
        ...

    def forward(self, *inputs: Interval) -> Interval: ...

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        """Weights of the inputs for those of the output; what is constant is added to the lines."""
        ...


class Rising:
    """A layer whose output rises with its inputs."""

    def value(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, *inputs: Interval) -> Interval:
        return Interval(*(self.value(*ends) for ends in zip(*inputs, strict=True)))


class Affine:
    """A layer that is linear but for a bias. spread: of a radius, by the absolute weights, without the bias.

    fixed: the bias, of a shape that meets the output's; None where there is none.
    """

    products = 0

    @property
    def fixed(self) -> Tensor | None:
        raise NotImplementedError

    def value(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def spread(self, radius: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, *inputs: Interval) -> Interval:
        """Widened by rounding, of what is summed and of the sum."""
        (x,) = inputs
        centre, radius = (x.lower + x.upper) / 2, (x.upper - x.lower) / 2
        middle = self.value(centre)
        wide = self.spread(radius + ROUNDING * (centre.abs() + radius)) + ROUNDING * middle.abs()
        return Interval(middle - wide, middle + wide)

    def round_off(self, lines: Lines, x: Interval) -> None:
        """Have lines widened by the rounding of what the output is summed of, here and in the model: of that nothing is
        left at the images where it cancels on the way.
        """
        most = self.spread(torch.maximum(x.lower.abs(), x.upper.abs()))
        lines.widen(most if self.fixed is None else most + self.fixed.abs())


@dataclass(frozen=True)
class Convolution(Affine):
    """weight: shape (outputs, inputs, height, width).  missing: rows and columns at the end that no window reaches."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    missing: Pair
    products: int

    def value(self, *inputs: Tensor) -> Tensor:
        return F.conv2d(inputs[0], self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def spread(self, radius: Tensor) -> Tensor:
        return F.conv2d(radius, self.weight.abs(), None, self.stride, self.padding, self.dilation, self.groups)

    @property
    def fixed(self) -> Tensor | None:
        return None if self.bias is None else self.bias[:, None, None]

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        weights = lines.weights
        self.round_off(lines, *inputs)
        if self.bias is not None:
            lines.add(weights.sum((2, 3)) @ self.bias)
        how = (self.stride, self.padding, self.missing, self.groups, self.dilation)
        return [F.conv_transpose2d(weights, self.weight, None, *how)]


@dataclass(frozen=True)
class Linear(Affine):
    """weight: shape (outputs, inputs)."""

    weight: Tensor
    bias: Tensor | None
    products: int

    def value(self, *inputs: Tensor) -> Tensor:
        return F.linear(inputs[0], self.weight, self.bias)

    def spread(self, radius: Tensor) -> Tensor:
        return F.linear(radius, self.weight.abs())

    @property
    def fixed(self) -> Tensor | None:
        return self.bias

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        self.round_off(lines, *inputs)
        if self.bias is not None:
            lines.add(lines.weights @ self.bias)
        return [lines.weights @ self.weight]


@dataclass(frozen=True)
class ScaleShift(Affine):
    """Each value times a number, and another added: normalisation. Both of a shape that meets the input's."""

    scale: Tensor
    shift: Tensor

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * self.scale + self.shift

    def spread(self, radius: Tensor) -> Tensor:
        return radius * self.scale.abs()

    @property
    def fixed(self) -> Tensor | None:
        return self.shift

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        self.round_off(lines, *inputs)
        lines.add((lines.weights * self.shift).flatten(1).sum(1))
        return [lines.weights * self.scale]


@dataclass(frozen=True)
class Reshape(Rising):
    """The same values in another shape. before, after: without the batch."""

    before: Shape
    after: Shape
    products: int = 0

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].reshape(-1, *self.after)

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        return [channels_last(lines.weights.reshape(-1, *self.before))]


@dataclass(frozen=True)
class Add(Rising):
    """Two inputs of one shape."""

    products: int = 0

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        return [lines.weights, lines.weights]


@dataclass(frozen=True)
class Relu(Rising):
    """Between two lines: Zhang et al. 2018, CROWN, https://arxiv.org/abs/1811.00866."""

    products: int = 0

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0].clamp_min(0)

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        lower, upper = inputs[0].lower.clamp_max(0), inputs[0].upper.clamp_min(0)
        slope = upper / (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
        offset = -slope * lower  # of the upper line; nothing where the sign is known
        if not lines.one_sided:
            lines.add_between(lines.weights, offset)
            return [lines.weights * slope]
        positive, negative = lines.weights.clamp_min(0), lines.weights.clamp_max(0)
        lines.add_between(negative, offset)
        # From below, the line through 0 that cuts off less; where the sign is known both are the upper one.
        below = torch.where(lower < 0, (upper > -lower).to(slope), slope)
        return [positive * below + negative * slope]


@dataclass(frozen=True)
class MaxPool(Rising):
    """From below and from above the pixel whose least value is the largest, from above with what others may have more.

    before: shape of the input, without the batch.
    """

    before: Shape
    kernel: Pair
    stride: Pair
    padding: Pair
    products: int = 0

    def windows(self, x: Tensor) -> Tensor:
        """The pixels of each window, shape (B, C, H', W', pixels), -inf beyond the edge."""
        (top, left), (height, width) = self.padding, self.kernel
        padded = F.pad(x, (left, left, top, top), value=-torch.inf)
        return padded.unfold(2, height, self.stride[0]).unfold(3, width, self.stride[1]).flatten(-2)

    def value(self, *inputs: Tensor) -> Tensor:
        return self.windows(inputs[0]).amax(-1)

    def back(self, lines: Lines, *inputs: Interval) -> list[Tensor]:
        lower, upper = (self.windows(each) for each in inputs[0])
        least, best = lower.max(-1)
        others = upper.scatter(-1, best[..., None], -torch.inf).amax(-1)
        lines.add_between(lines.weights, channels_last((others - least).clamp_min(0)))
        channels, height, width = self.before
        places = self.windows(torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)).clamp_min(
            0
        )
        # Where every least value is -inf the best may lie beyond the edge: any pixel will do, the bound is -inf or NaN.
        place = places.expand_as(lower).gather(-1, best[..., None]).squeeze(-1).long()
        count = len(lines.weights)
        found = lines.weights.new_zeros(count, channels, height * width)
        found.scatter_add_(2, place.flatten(2).expand(count, -1, -1), lines.weights.flatten(2))
        return [channels_last(found.reshape(count, *self.before))]


def average(channels: int, kernel: Pair, stride: Pair, padding: Pair, before: Shape, after: Shape) -> Convolution:
    """Average pooling: a convolution of each channel by itself."""
    weight = torch.full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return convolution(weight, None, stride, padding, (1, 1), channels, before, after)


def convolution(
    weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int, before: Shape,
    after: Shape,
) -> Convolution:  # fmt: skip
    reached: Sequence[Any] = [
        (size - 1) * step - 2 * pad + gap * (side - 1) + 1
        for size, step, pad, gap, side in zip(after[1:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    missing = (before[1] - reached[0], before[2] - reached[1])
    products = weight.numel() * after[1] * after[2]
    return Convolution(channels_last(weight), bias, stride, padding, dilation, groups, missing, products)
