"""Threads or processes that share out a batch's examples on a CPU, each with a copy of the model of its own.

An operation split over threads waits for the slowest of them and leaves the small ones to one; a batch split over
threads does neither. Each example is computed by as many threads whatever the batch, so that its bits stay the same.
Processes do not wait for each other's Python besides.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from robustlib.inference.batched_model import Count
from robustlib.inference.forks import can_differentiate, can_fork, in_processes
from robustlib.inference.model_modes import without_graphs
from robustlib.inference.replicas import Replicas

MOST = 4  # threads that run Python at once: more would wait for each other
MOST_FORKS = 16  # processes, each with one thread
COPIES_BYTES = 2**30  # of all copies together

Part = TypeVar("Part")
Item = TypeVar("Item")


class Shares(Protocol):
    """What shares out examples."""

    def scatter(self, n: int, work: Callable[[Replicas, Tensor], Part]) -> list[tuple[Tensor, Part]]:
        """The work done on every share of n rows, with the rows of each share."""
        ...


@dataclass(frozen=True)
class ThreadedReplicas:
    """replicas: a copy for each thread, the original first.  threads: of each operation."""

    replicas: list[Replicas]
    threads: int

    def scatter(self, n: int, work: Callable[[Replicas, Tensor], Part]) -> list[tuple[Tensor, Part]]:
        """The work done on every share of n rows, in turn one to each thread, with the rows of each share."""
        rows = shares_of(n, len(self.replicas))
        pairs = zip(self.replicas, rows, strict=False)
        with threads_of(self.threads), ThreadPoolExecutor(len(self.replicas)) as pool:
            futures = [pool.submit(self.at_work, work, replicas, share) for replicas, share in pairs]
            found = [(share, future.result()) for share, future in zip(rows, futures, strict=True)]
        for replicas in self.replicas[1:]:
            replicas.add_counts_to(self.replicas[0])
        return found

    def at_work(self, work: Callable[[Replicas, Tensor], Part], replicas: Replicas, rows: Tensor) -> Part:
        torch.set_num_threads(self.threads)  # of this thread
        return work(replicas, rows)


@dataclass(frozen=True)
class ForkedReplicas:
    """replicas: of this process, of which a fork has its own.  number: of processes, each with one thread."""

    replicas: Replicas
    number: int

    def scatter(self, n: int, work: Callable[[Replicas, Tensor], Part]) -> list[tuple[Tensor, Part]]:
        """The work done on every share of n rows, each in a process, with the rows of each share."""
        rows = shares_of(n, self.number)
        with threads_of(1):
            found = in_processes([partial(self.at_work, work, share, os.getpid()) for share in rows])
        for _, passes in found:
            for count, more in zip(self.replicas.counts, passes, strict=False):
                more.move_to(count)
        return [(share, part) for share, (part, _) in zip(rows, found, strict=True)]

    def at_work(self, work: Callable[[Replicas, Tensor], Part], rows: Tensor, parent: int) -> tuple[Part, list[Count]]:
        """Returns what a fork has counted; the parent, whose number this is, goes on counting."""
        if os.getpid() == parent:
            return work(self.replicas, rows), []
        for count in self.replicas.counts:
            count.clear()
        return work(self.replicas, rows), self.replicas.counts


def shares_of(n: int, number: int) -> list[Tensor]:
    """n rows, in turn one to each; no share without any, where there are some."""
    return [torch.arange(first, n, number) for first in range(max(1, min(n, number)))]


@contextmanager
def threads_of(each: int) -> Iterator[None]:
    """Threads that are started meanwhile begin with so many of their own; this one gets its number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(each)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share_out(items: Sequence[Item], work: Callable[[Sequence[Item]], None]) -> None:
    """Do the work on the items, a share of them in each thread. An operation has one thread, however many there are, so
    that its bits stay the same.
    """
    number = max(1, min(thread_count(), len(items)))
    with threads_of(1):
        if number == 1:
            work(items)
            return
        with ThreadPoolExecutor(number) as pool:
            futures = [pool.submit(alone, work, items[k::number]) for k in range(number)]
            for future in futures:
                future.result()


def alone(work: Callable[[Sequence[Item]], None], share: Sequence[Item]) -> None:
    torch.set_num_threads(1)  # of this thread
    work(share)


def thread_count() -> int:
    """How many threads share out a batch, where they can."""
    return min(torch.get_num_threads(), MOST)


def threads_each() -> int:
    """How many threads each of those that share out a batch has, be they threads or processes."""
    number = torch.get_num_threads()
    return 1 if can_fork() and number <= MOST_FORKS else number // thread_count()


def make_shares(replicas: Replicas, device: torch.device, *, fork: bool) -> Shares | None:
    """None where nothing is to be shared out: see `make_threaded`.  fork: the work may be done in another process."""
    number = torch.get_num_threads()
    if fork and can_fork() and device.type == "cpu" and 2 <= number <= MOST_FORKS and may_be_forked(replicas):
        return ForkedReplicas(replicas, number)
    return make_threaded(replicas, device)


def may_be_forked(replicas: Replicas) -> bool:
    """Whether a fork can do what is done here. One that cannot be copied holds what a process has to itself, as a
    connection is; one without tensors, or with a black box in it, calls something else.
    """
    layers = [layer for replica in replicas.every for layer in replica.modules()]
    if size_of(replicas) == 0 or any(hasattr(layer, "call_lock") for layer in layers):
        return False
    return copies_of(replicas, 1) is not None and can_differentiate()


def make_threaded(replicas: Replicas, device: torch.device) -> ThreadedReplicas | None:
    """None where one thread has the model to itself: on other devices, on one CPU, for models too large to copy or that
    cannot be copied.
    """
    number = thread_count()
    copies = copies_of(replicas, number - 1) if device.type == "cpu" and number > 1 else None
    return None if copies is None else ThreadedReplicas([replicas, *copies], torch.get_num_threads() // number)


def copies_of(replicas: Replicas, number: int) -> list[Replicas] | None:
    """So many copies, which have counted nothing; None where they are too large, or cannot be made."""
    if number * size_of(replicas) > COPIES_BYTES:
        return None
    try:
        copies = [copy.deepcopy(replicas, without_graphs(*replicas.every)) for _ in range(number)]
        for count in (count for made in copies for count in made.counts):
            count.clear()
    except Exception:  # a user's model may hold on to anything
        return None
    return copies


def size_of(replicas: Replicas) -> int:
    tensors = {id(t): t for module in replicas.every for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
