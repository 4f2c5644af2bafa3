"""Threads that share out a batch's examples on a CPU, each with a copy of the model of its own.

An operation split over threads waits for the slowest of them and leaves the small ones to one; a batch split over
threads does neither. Each example is computed by as many threads whatever the batch, so that its bits stay the same.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustlib.inference.fast_copy import Engines
from robustlib.inference.model_modes import without_graphs

MOST = 4  # threads that run Python at once: more would wait for each other
COPIES_BYTES = 2**30  # of all copies together

Part = TypeVar("Part")


@dataclass(frozen=True)
class Crew:
    """engines: a copy for each member, the original first.  threads: of each operation."""

    engines: list[Engines]
    threads: int

    def share_out(self, n: int, work: Callable[[Engines, Tensor], Part]) -> list[tuple[Tensor, Part]]:
        """The work done on every share of n rows, in turn one to each member, with the rows of each share."""
        rows = [torch.arange(first, n, len(self.engines)) for first in range(max(1, min(n, len(self.engines))))]
        pairs = zip(self.engines, rows, strict=False)
        with threads_of(self.threads), ThreadPoolExecutor(len(self.engines)) as pool:
            futures = [pool.submit(self.at_work, work, engines, share) for engines, share in pairs]
            found = [(share, future.result()) for share, future in zip(rows, futures, strict=True)]
        for engines in self.engines[1:]:
            engines.hand_over(self.engines[0])
        return found

    def at_work(self, work: Callable[[Engines, Tensor], Part], engines: Engines, rows: Tensor) -> Part:
        torch.set_num_threads(self.threads)  # of this thread
        return work(engines, rows)


@contextmanager
def threads_of(each: int) -> Iterator[None]:
    """Threads that are started meanwhile begin with so many of their own; this one gets its number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(each)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def members() -> int:
    """How many threads share out a batch, where they can."""
    return min(torch.get_num_threads(), MOST)


def make_crew(engines: Engines, device: torch.device) -> Crew | None:
    """None where one thread has the model to itself: on other devices, on one CPU, for models too large to copy or that
    cannot be copied.
    """
    number = members()
    if device.type != "cpu" or number < 2 or (number - 1) * size_of(engines) > COPIES_BYTES:
        return None
    try:
        copies = [copy.deepcopy(engines, without_graphs(*engines.every)) for _ in range(number - 1)]
        for engine in (engine for made in copies for engine in made.every):
            engine.count.clear()
    except Exception:  # a user's model may hold on to anything
        return None
    return Crew([engines, *copies], torch.get_num_threads() // number)


def size_of(engines: Engines) -> int:
    tensors = {id(t): t for module in engines.every for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
