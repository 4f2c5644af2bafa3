"""Linear functions of a layer's outputs on their way back to the images, and what they have gathered on it."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the sum of all absolute values that a bound is made of, by which it is widened: 512 times the rounding of float32.
ROUNDING = 2.0**-15


@dataclass
class Lines:
    """Linear functions, one a row, of what a layer gives out.

    weights: shape (K, *shape).  lower, upper: what is to be added for their least and greatest value, shape (K,).
    size: the sum of the absolute values of all that was added, and of what each layer on the way sums, shape (K,).
    one_sided: only the least values are asked for, and a ReLU may take the line that suits each sign of a weight. If
    not, its two lines are parallel, and one way back serves both values.
    """

    weights: Tensor
    lower: Tensor
    upper: Tensor
    size: Tensor
    one_sided: bool = False

    @classmethod
    def begin(cls, weights: Tensor, *, one_sided: bool = False) -> "Lines":
        zeros = [torch.zeros(len(weights), device=weights.device) for _ in range(3)]
        return cls(weights, *zeros, one_sided=one_sided)

    def add(self, value: Tensor) -> None:
        """Add a constant to each row."""
        self.lower += value
        self.upper += value

    def widen(self, size: Tensor) -> None:
        """Count what each output is the sum of, by absolute values, shape (1, *shape)."""
        self.size += flat_rows(self.weights).abs() @ flat_rows(size)[0]

    def add_between(self, weights: Tensor, offset: Tensor) -> None:
        """Add what lies between nothing and an offset of each output. weights: of the outputs.  offset: 0 or more."""
        flat, offset = flat_rows(weights), flat_rows(offset)[0]
        above, all_ = flat.clamp_min(0) @ offset, flat @ offset
        self.upper += above
        self.lower += all_ - above
        self.size += 2 * above - all_

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the greatest values, each widened by rounding, shape (K,)."""
        return self.lower - ROUNDING * self.size, self.upper + ROUNDING * self.size


def flat_rows(values: Tensor) -> Tensor:
    """(K, ...) values as (K, D), in the order in which images lie channels-last."""
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).flatten(1)


def channels_last(values: Tensor) -> Tensor:
    """Images as a CPU takes a third of the time for; anything else as it is."""
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values
