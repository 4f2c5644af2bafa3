"""The oracle as a recorded step asks it: of a fixed number of images, and without a look at what comes of them.

It calls the networks themselves, not the graphs of their passes. Where half precision ends it cannot compute an example
anew, so it keeps a flag for each, and whoever plays the step computes those examples eagerly.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlib.inference.batched_model import Count
from robustlib.inference.gradients import Net, Values, pull
from robustlib.inference.model_modes import no_autocast, strict_float32
from robustlib.inference.oracle import Margins, Oracle
from robustlib.losses import margin
from robustlib.model_calls import ask
from robustlib.number_text import counted

SHARE = 8  # of a step's rows the finer copy, some eight times as slow, is asked about one


class CannotRecord(Exception):
    """A step that does what a recording cannot hold; the message says what."""


@dataclass(frozen=True)
class Asked:
    """A network that a step calls itself, and how. bounded: examples may lie beyond the range of its precision.  The
    others: see `BatchedModel`.
    """

    net: Net
    dtype: torch.dtype
    memory_format: torch.memory_format
    precision: torch.dtype
    bounded: bool
    count: Count

    def arithmetic(self) -> AbstractContextManager[None]:
        return strict_float32() if self.precision == torch.float32 else no_autocast()


@dataclass
class Passes:
    """What a step passes of each of its rows, and besides, and where that is counted."""

    count: Count
    forwards: int = 0
    gradients: int = 0
    besides: int = 0

    def add(self, rows: int) -> None:
        self.count.forwards += self.forwards * rows + self.besides
        self.count.gradients += self.gradients * rows


class FixedOracle(Oracle):
    """A copy of a model inside a step of `rows` examples.

    asked: the copy.  quick: that which gradients alone are asked of.  finer: that which is asked where margins lie
    nearer to each other than `doubt`, None where the copy tells them apart itself.
    beyond: examples beyond half precision's range so far, shape (rows,); None where that has no end.
    """

    def __init__(self, asked: Asked, quick: Asked, finer: Asked | None, doubt: float, rows: int):
        super().__init__()
        self.finer, self.doubt = finer, doubt
        self.asked, self.quick, self.expected = asked, quick, rows
        self.batch = rows
        self.beyond: Tensor | None = None
        self.passes: dict[int, Passes] = {}

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise CannotRecord("it differentiates logits itself")
        logits = self.answer(self.asked, x)
        self.note(self.asked, logits, forwards=1)
        return logits

    def answer(self, copy: Asked, x: Tensor) -> Tensor:
        with copy.arithmetic(), torch.no_grad():
            return ask(copy.net, self.images(copy, x)).to(torch.float32, copy=True)

    def compared_margins(
        self, x: Tensor, y: Tensor, than: Margins, new: Tensor, first: Tensor
    ) -> tuple[Margins, Tensor]:
        """The finer copy is asked about a share of the rows, those first that were asked about least."""
        rough = margin(self(x), y)
        if self.finer is None:
            return Margins(rough, rough), torch.ones_like(new)
        near = new & (rough > than.rough - self.doubt)
        last = torch.iinfo(first.dtype).max
        asked = torch.where(near, first, last).argsort(stable=True)[: max(len(x) // SHARE, 1)]
        self.passed(self.finer.count).besides += len(asked)
        value = rough.scatter(0, asked, margin(self.answer(self.finer, x[asked]), y[asked]))
        answered = (~near).scatter(0, asked, True)
        # What is surely smaller is so by the finer copy too.
        return Margins(torch.where(near, value, -torch.inf), rough), answered

    def values_and_grads(self, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.pulled(self.asked, x, values, *rows)

    def gradients(self, x: Tensor, values: Values, *rows: Tensor) -> Tensor:
        return self.pulled(self.quick, x, values, *rows)[2]

    def pulled(self, copy: Asked, x: Tensor, values: Values, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        how = {"half": copy.precision != torch.float32, "doubt": copy.bounded, "looking": False}
        with copy.arithmetic():
            logits, found, gradients = pull(copy.net, self.images(copy, x), values, *rows, **how)
        pixels = gradients if copy.precision == torch.float16 else gradients.flatten(2)[:, :, :1]
        self.note(copy, logits, found, pixels, forwards=1, gradients=found.shape[1])
        return logits, found, gradients

    def images(self, copy: Asked, x: Tensor) -> Tensor:
        return x.detach().to(copy.dtype, memory_format=copy.memory_format, copy=True)

    def passed(self, count: Count) -> Passes:
        return self.passes.setdefault(id(count), Passes(count))

    def note(self, copy: Asked, *found: Tensor, forwards: int, gradients: int = 0) -> None:
        """Count a pass, and flag the examples for which it gave what is no finite number."""
        if len(found[0]) != self.expected:
            raise CannotRecord(f"it asks about {counted(len(found[0]), 'image')} where its state has {self.expected}")
        passes = self.passed(copy.count)
        passes.forwards += forwards
        passes.gradients += gradients
        if not copy.bounded:
            return
        sums = torch.stack([column.detach().flatten(1).sum(1) for column in found])
        beyond = ~sums.isfinite().all(0)
        self.beyond = beyond if self.beyond is None else self.beyond | beyond
