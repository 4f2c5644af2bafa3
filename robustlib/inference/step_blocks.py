"""Blocks of examples in memory that stays where it is, and the steps over them that are recorded as CUDA graphs."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustlib.inference.cuda_graphs import no_waits, on_a_stream_of, recording
from robustlib.inference.fixed_oracle import CannotRecord, FixedOracle, Passes
from robustlib.inference.steps import Phase, Rows

Step = Callable[[FixedOracle, Rows, dict[str, Tensor], Phase], None]  # oracle, state, marks, phase


@dataclass
class Recorded:
    """A step that can be played again. passes: what it passes of each row."""

    graph: torch.cuda.CUDAGraph
    passes: list[Passes]


@dataclass
class Block:
    """A fixed number of examples: their state in buffers, as it was when the window began, and what steps noted since.

    place: of each row in the whole batch, -1 where it is none or done.  marks: see `window_looks.py`.
    oracle: makes what a step of so many rows asks.  pool: the memory of recordings and their stream, the same for all
    blocks: nothing in it is read after a replay.  numbers: those of the phase that is played.  seen: how often a kind
    of step was taken without a recording.
    """

    state: Rows
    before: Rows
    place: Tensor
    marks: dict[str, Tensor]
    oracle: Callable[[int], FixedOracle]
    pool: Any
    numbers: list[Tensor] = field(default_factory=list)
    recorded: dict[Hashable, Recorded] = field(default_factory=dict)
    seen: dict[Hashable, int] = field(default_factory=dict)
    live: int = 0

    @property
    def nbytes(self) -> int:
        return 2 * sum(t.numel() * t.element_size() for t in (*self.state.rows().values(), *self.marks.values()))

    def load(self, run: Rows, place: Tensor) -> None:
        """Take these examples, and repeat the last of them in the rows that are left."""
        self.live = len(place)
        for name, rows in run.rows().items():
            buffer = self.state.rows()[name]
            buffer[: self.live].copy_(rows)
            buffer[self.live :].copy_(rows[-1:].expand_as(buffer[self.live :]))
        self.place.fill_(-1)
        self.place[: self.live].copy_(place)

    def rows_of(self, state: Rows) -> tuple[Rows, Tensor]:
        """The rows that are not done, as the state has them, and their places."""
        rows = (self.place >= 0).nonzero().squeeze(1)
        self.live = len(rows)
        return state[rows], self.place[rows]

    def begin_window(self) -> None:
        """Keep the state as it is; nothing is noted yet."""
        for name, buffer in self.before.rows().items():
            buffer.copy_(self.state.rows()[name])
        for mark in self.marks.values():
            mark.zero_()

    def take(self, step: Step, phase: Phase, again: int) -> bool:
        """One step, played where it is recorded, and recorded where it comes again often enough. True if it was played.

        again: how many more steps of its kind this run has.
        """
        kind = phase.kind
        if kind not in self.recorded and again + self.seen.get(kind, 0) >= WORTH:
            self.set_numbers(phase)
            self.recorded[kind] = self.record(step, Phase(kind, tuple(self.numbers[: len(phase.numbers)])))
        if kind not in self.recorded:
            self.seen[kind] = self.seen.get(kind, 0) + 1
            count(self.step(step, phase), self.live)
            return False
        self.set_numbers(phase)
        self.recorded[kind].graph.replay()
        count(self.recorded[kind].passes, self.live)
        return True

    def set_numbers(self, phase: Phase) -> None:
        while len(self.numbers) < len(phase.numbers):
            self.numbers.append(torch.zeros((), dtype=torch.float64, device=self.place.device))
        for buffer, value in zip(self.numbers, phase.numbers, strict=False):
            buffer.fill_(value)

    def record(self, step: Step, phase: Phase) -> Recorded:
        """The step as a graph, after one that counts for nothing, in which libraries choose their kernels."""
        pool, stream = self.pool
        with on_a_stream_of(self.place, stream), no_waits():
            state = self.state.with_rows({name: rows.clone() for name, rows in self.state.rows().items()})
            step(self.oracle(len(self.place)), state, dict(self.marks), phase)
            del state
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self.place, stream, pool):
            passes = self.step(step, phase)
        return Recorded(graph, passes)

    def step(self, step: Step, phase: Phase) -> list[Passes]:
        """One step of all rows; the buffers hold what comes of it. Returns what it passed of each row."""
        oracle, marks = self.oracle(len(self.place)), dict(self.marks)
        state = self.state.with_rows(self.state.rows())
        step(oracle, state, marks, phase)
        if oracle.beyond is not None:
            marks["beyond"] = marks["beyond"] | oracle.beyond
        constants = [{k: v for k, v in vars(run).items() if not isinstance(v, Tensor)} for run in (self.state, state)]
        if constants[0] != constants[1] or state.rows().keys() != self.state.rows().keys():
            raise CannotRecord("it changes what is no tensor of its state")
        write(self.state.rows() | self.marks, state.rows() | marks)
        return list(oracle.passes.values())


WORTH = 4  # steps of a kind from which on a recording, which costs about two of them, is worth it


def write(buffers: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Into each buffer what has come in its place. What lies in another buffer is read before any is written."""
    changed = {name: value for name, value in values.items() if value is not buffers[name]}
    for name, value in changed.items():
        if value.shape != buffers[name].shape or value.dtype != buffers[name].dtype:
            raise CannotRecord(f"its {name} changes from {described(buffers[name])} to {described(value)}")
    held = {buffer.untyped_storage().data_ptr() for buffer in buffers.values()}
    apart = {name: v.clone() if v.untyped_storage().data_ptr() in held else v for name, v in changed.items()}
    for name, value in apart.items():
        buffers[name].copy_(value)


def described(value: Tensor) -> str:
    return f"{value.dtype} of {tuple(value.shape)}"


def count(passes: list[Passes], rows: int) -> None:
    for each in passes:
        each.add(rows)


def blank(run: Rows, size: int) -> Rows:
    """Buffers for so many examples like the run's."""
    return run.with_rows({name: rows.new_zeros((size, *rows.shape[1:])) for name, rows in run.rows().items()})
