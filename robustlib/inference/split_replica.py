"""A replica that takes sums of gradients behind the affine head of its network, through which each sum goes once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.inference.affine_head import pooled_relu
from robustlib.inference.batch_sizes import groups
from robustlib.inference.batched_model import NONE
from robustlib.inference.gradients import Net, check_mode
from robustlib.inference.line_points import Line, PooledLine
from robustlib.inference.oracle import Points
from robustlib.inference.replica import Replica
from robustlib.inference.threads import share_out, threads_of
from robustlib.losses import Loss
from robustlib.memory import free, out_of_memory
from robustlib.model_calls import rows_of

TOGETHER = 8  # points of an image that are summed up together: batch sizes are multiples of it
# Points of lines in a pass, in units of the largest batch size: matrices of more rows take less time each, and what a
# tail keeps of a point is less than what a network keeps of an image.
LINE_POINTS = 2


@dataclass(frozen=True)
class Split:
    """A network in parts: see `robustlib.inference.affine_head.split`."""

    head: nn.Module
    tail: nn.Module
    pooled: bool

    def to_tail(self, x: Tensor) -> Tensor:
        """What the head gives for images."""
        return quietly(self.head, x)

    def from_tail(self, x: Tensor) -> Tensor:
        """The network's answer for what the tail is given."""
        return quietly(self.tail, x)

    def after_head(self, x: Tensor) -> Tensor:
        """The network's answer for what its head gives."""
        return self.from_tail(pooled_relu(x) if self.pooled else x)


def quietly(net: nn.Module, x: Tensor) -> Tensor:
    """What a part gives. The call of a traced one prints what it raises, and where."""
    return nn.Module.__call__(net, x)


@dataclass(frozen=True)
class Sum:
    """What is summed up: the gradients of `loss(logits, *rows)` at these places of each image's line, by weights."""

    places: Sequence[float]
    weights: Sequence[float]
    loss: Loss

    def parts(self, most: int) -> tuple[list[range], int]:
        """How an image's points go through the tail, so many at most: in which parts, as even as can be, and with the
        points of how many images together.
        """
        n = len(self.places)
        ends = np.linspace(0, n, max(1, -(-n // most)) + 1).astype(int).tolist()
        return [range(*pair) for pair in pairwise(ends)], max(1, most // max(1, n))


class SplitReplica(Replica):
    """A replica whose sums of gradients are those of the network in parts, and which is what it was in all else.

    No bit of an image's sum depends on who else is there: batches are filled up to fixed sizes, but for an image that
    fills one, and for images that have the same bits as in filled ones.
    """

    def __init__(self, split: Split, **replica: Any):
        super().__init__(**replica)
        self.split = split
        self.known: dict[tuple[int, ...], bool] = {}  # what `steady` has found

    def line_gradient_sum(
        self, start: Tensor, end: Tensor, places: Sequence[float], weights: Sequence[float], loss: Loss, *rows: Tensor
    ) -> Tensor:
        wanted = Sum(places, weights, loss)

        def some(images: range) -> Tensor:
            chunk = slice(images.start, images.stop)
            with torch.no_grad():
                starts = self.split.to_tail(self.fill(start[chunk]))
            own = [row[chunk] for row in rows]
            return self.through_head(end[chunk], lambda sums, ends: self.add_lines(sums, starts, ends, wanted, own))

        return self.fitting(lambda: [some(images) for images in groups(len(end), self.sizes[-1])], end, len(places))

    def gradient_sum(self, x: Tensor, points: Points, weights: Sequence[float], loss: Loss, *rows: Tensor) -> Tensor:
        def call() -> list[Tensor]:
            sums = [NONE] * len(x)
            for part in groups(len(weights), min(TOGETHER, self.sizes[-1])):
                there = torch.stack([points(k) for k in part], 1)
                shares = x.new_tensor([weights[k] for k in part])
                self.add_sums(sums, there, shares, loss, rows)
            chunks = (slice(some.start, some.stop) for some in groups(len(x), self.sizes[-1]))
            return [self.through_head(x[chunk], lambda into, _, own=sums[chunk]: put(own, into)) for chunk in chunks]

        return self.fitting(call, x, len(weights))

    def fitting(self, call: Callable[[], list[Tensor]], x: Tensor, points: int) -> Tensor:
        """The gradients by the images that the call gives; in smaller batches where memory does not hold them."""
        check_mode()
        while True:
            try:
                with self.arithmetic():
                    # As the images lie: what is computed of a map may have other last bits where it lies otherwise.
                    found = torch.empty_like(x).copy_(torch.cat(call()))
                break
            except Exception as error:
                if not out_of_memory(error) or not self.shrink(self.sizes[-1]):
                    raise
            free()  # here, where the error no longer holds what was to be freed
        self.count.forwards += len(found) * points
        self.count.gradients += len(found) * points
        return found

    def through_head(self, x: Tensor, write: Callable[[Tensor, Tensor], None]) -> Tensor:
        """The gradients by the images of sums by what the head gives. write: puts the sums of the images into the first
        tensor; the second is what the head gives for them.
        """
        images = self.fill(x).requires_grad_()
        with torch.enable_grad():
            given = self.split.to_tail(images)
        sums = torch.zeros_like(given)
        write(sums[: len(x)], given.detach())
        return torch.autograd.grad(given, images, sums)[0][: len(x)].contiguous()

    def add_sums(self, sums: list[Tensor], points: Tensor, weights: Tensor, loss: Loss, rows: Sequence[Tensor]) -> None:
        """Add the weighted sums of gradients by what the head gives, at points of images, shape (B, points, C, H, W).

        sums: of each image so far, NONE at first. They are added to in place: at 224 pixels those of a batch may take a
        gigabyte.
        """
        each = len(weights)

        def work(some: Sequence[range]) -> None:
            for images in some:
                chunk = slice(images.start, images.stop)
                own = [row[chunk].repeat_interleave(each, 0) for row in rows]
                with torch.no_grad():
                    given = self.split.to_tail(self.fill(points[chunk].flatten(0, 1)))
                shares = weights.repeat(len(images))
                gradients = self.pull(self.split.after_head, given.requires_grad_(), shares, loss, own)
                for i, more in zip(images, gradients[: len(shares)].split(each), strict=True):
                    sums[i] = more.sum(0) if sums[i] is NONE else sums[i].add_(more.sum(0))

        share_out(list(groups(len(points), max(1, self.sizes[-1] // each))), work)

    def add_lines(self, sums: Tensor, starts: Tensor, ends: Tensor, wanted: Sum, rows: Sequence[Tensor]) -> None:
        """Write the sums of images' gradients by what the head gives, at points between what it gives for two."""
        parts, few = wanted.parts(LINE_POINTS * self.sizes[-1])
        kind = PooledLine if self.split.pooled else Line
        last = ends.ndim == 4 and self.memory_format == torch.channels_last

        def made() -> Line:
            return kind(ends.shape[1:], max(len(part) for part in parts), ends, last=last)

        whole = few * len(parts[0])  # points in a pass that is not filled up
        if few > 1 and len(sums) >= few and whole % TOGETHER:
            (first := made()).begin(starts[0], ends[0])
            whole = whole if self.steady(first, few, wanted, [row[:1] for row in rows]) else -1

        def work(some: Sequence[range]) -> None:
            lines = [made() for _ in range(min(few, len(sums)))]
            for images in some:
                used = lines[: len(images)]
                for line, i in zip(used, images, strict=True):
                    line.begin(starts[i], ends[i])
                own = [row[images.start : images.stop] for row in rows]
                for part in parts:
                    n = len(used) * len(part)
                    size = n if few == 1 or n == whole else self.filled_size(n)
                    points, gradients = self.pass_lines(used, part, wanted, own, size)
                    for j, line in enumerate(used):
                        share = slice(j * len(part), (j + 1) * len(part))
                        line.add(points[share], gradients[share])
                for line, i in zip(used, images, strict=True):
                    line.put(sums[i])

        share_out(list(groups(len(sums), few)), work)

    def filled_size(self, n: int) -> int:
        """The batch size that so many points are filled up to."""
        return self.size_of(n) if n <= self.sizes[-1] else -(-n // TOGETHER) * TOGETHER

    def steady(self, line: Line, few: int, wanted: Sum, rows: Sequence[Tensor]) -> bool:
        """Whether a line's gradients have the same bits in a filled batch and at each place among so many lines."""
        n = len(wanted.places)
        if (key := (few, n, *line.shape)) not in self.known:
            with threads_of(1):
                filled = self.pass_lines([line], range(n), wanted, rows, self.filled_size(n))[1][:n]
                again = [row.repeat(few, *[1] * (row.ndim - 1)) for row in rows]
                found = self.pass_lines([line] * few, range(n), wanted, again, few * n)[1]
            self.known[key] = all(torch.equal(each, filled) for each in found.split(n))
        return self.known[key]

    def pass_lines(
        self, lines: Sequence[Line], part: range, wanted: Sum, rows: Sequence[Tensor], size: int
    ) -> tuple[Tensor, Tensor]:
        """Pass a part of each line's points through the tail, filled up to a batch of this size. Returns what is given
        at the points and the gradients there, rows of as many numbers as a line has.
        """
        like, n = lines[0].start, len(part)
        at, weights = (like.new_tensor([values[k] for k in part]) for values in (wanted.places, wanted.weights))
        points = like.new_empty(size, lines[0].size)
        points[len(lines) * n :] = 0
        for j, line in enumerate(lines):
            line.points(at, points[j * n : (j + 1) * n])
        own = [row.repeat_interleave(n, 0) for row in rows]
        leaf = lines[0].image_of(points).requires_grad_()
        gradients = self.pull(self.split.from_tail, leaf, weights.repeat(len(lines)), wanted.loss, own)
        return points, lines[0].flat(gradients)

    @torch.enable_grad()
    def pull(self, net: Net, leaf: Tensor, weights: Tensor, loss: Loss, rows: Sequence[Tensor]) -> Tensor:
        """The gradients of the first examples' losses, each times its weight, by what the net is given."""
        answer = rows_of(net(leaf), len(leaf))
        logits = answer.detach()[: len(weights)].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(logits, *rows).sum(), logits)
        into = torch.zeros_like(answer)
        into[: len(weights)] = slope * weights[:, None]
        return torch.autograd.grad(answer, leaf, into)[0]


def put(rows: Sequence[Tensor], into: Tensor) -> None:
    for row, place in zip(rows, into, strict=True):
        place.copy_(row)
