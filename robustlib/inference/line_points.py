"""Points of a straight line between two images, and the sum of gradients there: of all of an image's, in one place.

With max-pooling and ReLU after the line, the points are pooled as they are made from its two ends, which a cache holds.
A layer would make each of them in full, and hand back a gradient as large.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_BYTES = 10 * 4 * 4 * 8192  # of points that are worked on together: ten of 32 channels of 32x32


class Line:
    """Points of the line between two images.

    shape: of an image.  most: points that are kept for `add`.  last: whether an image's channels lie last in memory.
    size: numbers that are given for a point.
    """

    def __init__(self, shape: Sequence[int], most: int, like: Tensor, *, last: bool):
        self.shape, self.last = tuple(shape), last
        self.given = self.given_shape()
        self.size = torch.Size(self.given).numel()
        self.make_room(most, like)

    def given_shape(self) -> tuple[int, ...]:
        return (*self.shape[1:], self.shape[0]) if self.last else self.shape

    def make_room(self, most: int, like: Tensor) -> None:
        self.sums = like.new_zeros(1, self.size)

    def image_of(self, rows: Tensor) -> Tensor:
        """Rows of `size` numbers as images; a view."""
        found = rows.view(-1, *self.given)
        return found.permute(0, 3, 1, 2) if self.last else found

    def flat(self, images: Tensor) -> Tensor:
        """Images as rows."""
        return (images.permute(0, 2, 3, 1) if self.last else images).reshape(len(images), -1)

    def begin(self, start: Tensor, end: Tensor) -> None:
        """Go on with the line between these images; nothing has been added."""
        self.start = torch.stack([part.reshape(-1) for part in self.parts(start)])
        self.way = torch.stack([part.reshape(-1) for part in self.parts(end)]).sub_(self.start)
        self.sums.zero_()

    def parts(self, image: Tensor) -> list[Tensor]:
        """The parts of an image that a row of numbers each is kept of; views."""
        return [image.permute(1, 2, 0) if self.last else image]

    def points(self, places: Tensor, into: Tensor) -> None:
        """Write what is given at these places, 0 at the start of the line and 1 at its end. into: (places, size)."""
        torch.addcmul(self.start, self.way, places[:, None], out=into)

    def add(self, points: Tensor, gradients: Tensor) -> None:
        """Add the gradients at the points that were given last. Both: shape (places, size)."""
        self.sums[0].add_(gradients.sum(0))

    def total(self) -> tuple[Tensor, ...]:
        """The sums of gradients by each of the parts."""
        return tuple(self.sums)

    def put(self, into: Tensor) -> None:
        """Write the sum of gradients by the image, shaped like that; 0 where an image is no part of what is given."""
        into.zero_()
        for part, each in zip(self.parts(into), self.total(), strict=True):
            part.copy_(each.view(self.given))


class PooledLine(Line):
    """Points of the line as max-pooling of two by two pixels with ReLU gives them.

    Of equal pixels the first gets the gradient, as in PyTorch.
    """

    def given_shape(self) -> tuple[int, ...]:
        channels, height, width = self.shape
        return (height // 2, width // 2, channels) if self.last else (channels, height // 2, width // 2)

    def make_room(self, most: int, like: Tensor) -> None:
        block = max(1, min(most, BLOCK_BYTES // (4 * like.element_size() * max(self.size, 1))))
        self.four = like.new_empty(block, 4, self.size)
        self.two = like.new_empty(block, 2, self.size)
        # 1 where the right pixel of a row is the larger, and where the lower row has the largest, 0 elsewhere: floats,
        # by which a CPU multiplies sooner than by bools.
        self.right = like.new_empty(most, 2, self.size)
        self.lower = like.new_empty(most, self.size)
        self.sums = like.new_zeros(4, self.size)

    def parts(self, image: Tensor) -> list[Tensor]:
        """Of every four pixels the upper left, the lower left, the upper right and the lower right."""
        image = image.permute(1, 2, 0) if self.last else image
        before = () if self.last else (slice(None),)
        height, width = (side // 2 * 2 for side in self.shape[1:])
        corners = ((0, 0), (1, 0), (0, 1), (1, 1))
        return [image[(*before, slice(row, height, 2), slice(column, width, 2))] for row, column in corners]

    def points(self, places: Tensor, into: Tensor) -> None:
        for chosen in self.blocks(len(places)):
            n = chosen.stop - chosen.start
            four, two = self.four[:n], self.two[:n]
            torch.addcmul(self.start, self.way, places[chosen, None, None], out=four)
            torch.maximum(four[:, :2], four[:, 2:], out=two)
            torch.gt(four[:, 2:], four[:, :2], out=self.right[chosen])
            torch.maximum(two[:, 0], two[:, 1], out=into[chosen])
            torch.gt(two[:, 1], two[:, 0], out=self.lower[chosen])
            into[chosen].clamp_min_(0)

    def add(self, points: Tensor, gradients: Tensor) -> None:
        for chosen in self.blocks(len(points)):
            four, right = self.four[: chosen.stop - chosen.start], self.right[chosen]
            whole, lower, upper_right, lower_right = four.unbind(1)
            torch.ops.aten.threshold_backward.grad_input(gradients[chosen], points[chosen], 0, grad_input=whole)
            torch.mul(whole, self.lower[chosen], out=lower)
            torch.sub(whole, lower, out=upper_right).mul_(right[:, 0])
            torch.mul(lower, right[:, 1], out=lower_right)
            self.sums.add_(four.sum(0))

    def blocks(self, n: int) -> list[slice]:
        return [slice(first, min(first + len(self.four), n)) for first in range(0, n, len(self.four))]

    def total(self) -> tuple[Tensor, ...]:
        whole, lower, upper_right, lower_right = self.sums
        return whole - lower - upper_right, lower - lower_right, upper_right, lower_right
