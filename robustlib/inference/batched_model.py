"""Models called at a few fixed batch sizes, so that an example's numbers do not depend on its neighbours.

A batch of one goes through other code than a batch of 64, and its last bits differ. Batches filled up to fixed sizes
give every example the same bits, whoever shares its batch; and fixed sizes are what CUDA graphs want.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustlib.inference.batch_sizes import CPU_SIZES
from robustlib.inference.cuda_graphs import RecordingFailed
from robustlib.inference.gradients import Net, Values, pull
from robustlib.inference.model_modes import no_autocast, strict_float32
from robustlib.inference.oracle import Oracle
from robustlib.memory import free, out_of_memory
from robustlib.model_calls import rows_of

FULL = 0.75  # a batch at least so full is filled up; a smaller one is split

NONE = torch.empty(0, dtype=torch.int64)


@dataclass
class Count:
    """Examples passed forward, and gradients taken besides, without the filling. overflows: those of them that were
    computed anew in float32, since half precision gave what is no number, or a gradient that had vanished.
    """

    forwards: int = 0
    gradients: int = 0
    overflows: int = 0

    def clear(self) -> None:
        self.forwards = self.gradients = self.overflows = 0

    def move_to(self, other: "Count") -> None:
        """Counted by the other from now on."""
        other.forwards += self.forwards
        other.gradients += self.gradients
        other.overflows += self.overflows
        self.clear()


@dataclass
class Room:
    """What memory holds. sizes: batch sizes, rising; fewer where it has shown that it holds no more.  most: examples at
    once where there are no fixed sizes, None while nothing is known.
    """

    sizes: tuple[int, ...]
    most: int | None = None


class BatchedModel(Oracle):
    """A model in eval mode, called at fixed batch sizes.

    net: what is called, with images of `memory_format` and `dtype`.  precision: what it computes in.
    sizes: batch sizes, rising; empty for a model that does not take filled batches.  room: in place of them, what
    another that calls this net knows of memory; the two then learn together.
    spare: of one in half precision the copy in float32 that computes the examples whose numbers are beyond its range.
    count: what has been passed; several may count together.
    """

    def __init__(
        self,
        net: Net,
        *,
        sizes: tuple[int, ...] = CPU_SIZES,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        precision: torch.dtype = torch.float32,
        spare: "BatchedModel | None" = None,
        count: Count | None = None,
        room: Room | None = None,
    ):
        super().__init__()
        self.net = net
        self.room = Room(sizes) if room is None else room
        self.dtype = dtype
        self.memory_format = memory_format
        self.precision = precision
        self.spare_one = (spare,)  # in a tuple, so that it is no part of this module
        self.count = Count() if count is None else count

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.room.sizes

    @property
    def spare(self) -> "BatchedModel | None":
        return self.spare_one[0]

    @property
    def batch(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sizes[-1] if self.sizes else 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32, shape (B, classes). They have a gradient by images that require one."""
        return Differentiable.apply(x, self) if x.requires_grad and torch.is_grad_enabled() else self.answer(x)

    @torch.no_grad()
    def answer(self, x: Tensor) -> Tensor:
        """The logits alone."""

        def call(chunk: slice) -> tuple[Tensor]:
            images = self.fill(x[chunk])
            rows = rows_of(self.net(images), len(images))[: chunk.stop - chunk.start]
            return (rows.to(torch.float32, copy=True),)  # the next call may write over what this one gave

        self.count.forwards += len(x)
        with self.arithmetic():
            (logits,) = self.each(len(x), call)
        if len(rows := self.beyond_range(logits)):
            assert self.spare is not None
            logits[rows] = self.spare(x[rows])
        return logits

    def values_and_grads(self, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def call(chunk: slice) -> tuple[Tensor, Tensor, Tensor]:
            return pull(
                self.net,
                self.fill(x[chunk]),
                values,
                *(row[chunk] for row in rows),
                half=self.precision != torch.float32,
                n=chunk.stop - chunk.start,
                doubt=self.spare is not None,
            )

        with self.arithmetic():
            logits, found, gradients = self.each(len(x), call)
        self.count.forwards += len(x)
        self.count.gradients += found.numel()
        # Only float16's range ends before float32's; a gradient that has vanished is NaN from its first pixel on.
        pixels = gradients if self.precision == torch.float16 else gradients.flatten(2)[:, :, :1]
        if len(bad := self.beyond_range(logits, found, pixels)):
            assert self.spare is not None
            again = self.spare.values_and_grads(x[bad], values, *(row[bad] for row in rows))
            logits[bad], found[bad], gradients[bad] = again
        return logits, found, gradients

    def arithmetic(self) -> AbstractContextManager[None]:
        """As the copy was compared with its model: float32 is strict, and no autocast of the caller's changes it."""
        return strict_float32() if self.precision == torch.float32 else no_autocast()

    def beyond_range(self, *found: Tensor) -> Tensor:
        """Places of the examples for which half precision found what is no finite number, or lost a gradient.

        An attack would stand still on them, the sign of NaN being zero, and the model would be called robust.
        """
        if self.spare is None or math.isfinite(sum(column.sum() for column in found)):
            return NONE
        sums = torch.stack([column.flatten(1).sum(1) for column in found])
        rows = (~sums.isfinite().all(0)).nonzero().squeeze(1)
        self.count.overflows += len(rows)
        return rows

    def each(self, n: int, call: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The call for every chunk of n examples, joined. A batch that memory does not hold is split."""
        parts, start = [], 0
        while start < n or not parts:
            chunk = slice(start, min(start + self.piece(n - start), n))
            if self.gives_up(self.size_of(chunk.stop - chunk.start)):
                continue
            try:
                parts.append(call(chunk))
                start = chunk.stop
                continue
            except Exception as error:
                tried = chunk.stop - chunk.start
                # In a recording CUDA may tell of memory that ran out as of another error.
                in_vain = isinstance(error, RecordingFailed) and self.size_of(tried) > min(self.sizes, default=0)
                if not (in_vain or out_of_memory(error)) or not self.shrink(tried):
                    raise
            free()  # here, where the error no longer holds what was to be freed
        return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def gives_up(self, size: int) -> bool:
        """Whether this batch size, asked for here before it is used, is not to be used from now on."""
        return False

    def piece(self, rest: int) -> int:
        """How many of the remaining examples to take next: so that little of a fixed size is filling."""
        if not self.sizes:
            return max(min(rest, self.room.most or rest), 1)
        for size in self.sizes:
            if FULL * size <= rest <= size:
                return size
        return max((size for size in self.sizes if size <= rest), default=self.sizes[0])

    def size_of(self, n: int) -> int:
        """To how many a chunk of n examples is filled up: to none more without fixed sizes, since the model's answers
        then depend on its batch. But it may take no batch of one, as BatchNorm in training does not.
        """
        return next((size for size in self.sizes if size >= n), max(n, 2))

    def shrink(self, tried: int) -> bool:
        """After a chunk of so many did not fit: from now on at most half as many as it was filled up to. False where
        nothing smaller is left.
        """
        size = self.size_of(tried) if self.sizes else tried
        half = max(size // 2, 1)
        if self.sizes:
            self.room.sizes = tuple(fitting for fitting in self.sizes if fitting <= half) or (half,)
        else:
            self.room.most = half
        self.forget(self.room.sizes[-1] if self.sizes else half)
        return size > 1

    def forget(self, beyond: int) -> None:
        """Give back the memory that was kept for batches of more examples; where nothing is recorded there is none."""

    def fill(self, x: Tensor) -> Tensor:
        """The chunk as `net` takes it: filled up with copies of its last example to the next fixed size."""
        size = self.size_of(len(x))
        if 0 < len(x) < size:
            x = torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])])
        # Always a copy: attacks go on with their own images, and a graph is kept until its gradient is taken.
        return x.detach().to(self.dtype, memory_format=self.memory_format, copy=True)


class Differentiable(torch.autograd.Function):
    """Logits for attacks that ask autograd. Their gradient takes a second pass, at the same sizes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: BatchedModel) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.model = model
        ctx.save_for_backward(x)
        return model.answer(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *into: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        slopes = ctx.model.values_and_grads(x, lambda logits, rows: (logits * rows).sum(1, keepdim=True), *into)[2]
        return slopes[:, 0], None
