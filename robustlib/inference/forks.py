"""Processes that share out a batch's examples on a CPU: forks of this one, which have its model and images already.

Of threads one at a time runs Python, and around a small network much of the time is Python's.
"""

import ctypes
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from robustlib.memory import out_of_memory

STUCK_SECONDS = 60.0
LOOK_SECONDS = 5.0
SIZE = struct.Struct("q")  # before an answer: its bytes
AUTOGRAD = "fork-based multiprocessing"  # in the error of a backward pass that no fork of this process can make
PR_SET_PDEATHSIG = 1  # it ends with its parent

Part = TypeVar("Part")


def can_fork() -> bool:
    """Whether a fork ends with its parent, and its state can be seen: on Linux."""
    return sys.platform == "linux"


@dataclass
class Fork:
    """A process that does one piece of work. pipe: what it has to say, pickled.  said: of that so far."""

    pid: int
    pipe: int
    said: bytearray = field(default_factory=bytearray)
    ticks: int = -1
    since: float = field(default_factory=time.monotonic)

    def answer(self) -> bytes:
        """What it says in the end; empty where it died, or is stuck."""
        poll = select.poll()  # `select.select` takes no descriptor above 1,023
        poll.register(self.pipe, select.POLLIN)
        while len(self.said) < SIZE.size or len(self.said) < SIZE.size + SIZE.unpack_from(self.said)[0]:
            if poll.poll(1000 * LOOK_SECONDS):
                part = os.read(self.pipe, 2**20)
                if not part:
                    return b""
                self.said += part
            elif self.is_stuck():
                return b""
        return bytes(self.said[SIZE.size :])

    def is_stuck(self) -> bool:
        """Whether it has ended, though somebody that it started holds its pipe; or has slept, and used no time of a
        processor, for long: it waits for a lock that a thread of its parent held.
        """
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return True
        state, ticks = fields[0], int(fields[11]) + int(fields[12])
        if state == "Z":
            return True
        if state != "S" or ticks != self.ticks:
            self.ticks, self.since = ticks, time.monotonic()
        return time.monotonic() - self.since > STUCK_SECONDS

    def end(self) -> None:
        """Ended, whatever it does."""
        os.close(self.pipe)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # somebody else waits for all children
            os.waitpid(self.pid, 0)


def in_processes(works: Sequence[Callable[[], Part]]) -> list[Part]:
    """What each of the works returns: the first is done here, each other in a fork of this process.

    The work of a fork that dies, hangs or cannot be made is done here too, with a warning. Raises what a work raises.
    """
    forks: list[Fork | None] = []
    try:
        for work in works[1:]:
            forks.append(fork(work))
        found = [works[0]()]
        for work, child in zip(works[1:], forks, strict=True):
            answer = child.answer() if child is not None else b""
            if not answer:
                what = "died or hung" if child is not None else "could not be made"
                warnings.warn(f"a process that shared the examples {what}: its share is done anew", stacklevel=2)
            found.append(result_of(answer) if answer else work())
        return found
    finally:
        for child in forks:
            if child is not None:
                child.end()


def can_differentiate() -> bool:
    """Whether a fork can make a backward pass: none can once autograd has started threads for another device than the
    CPU, which a GPU that is there is enough for.
    """
    child = fork(lambda: torch.ones(1, requires_grad=True).sum().backward())
    if child is None:
        return False
    try:
        return bool(child.answer())
    finally:
        child.end()


def fork(work: Callable[[], Any]) -> Fork | None:
    """None where the machine lets no more processes be made."""
    parent, (ours, theirs) = os.getpid(), os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that may hold a lock: see `is_stuck`
            pid = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        return None
    if pid:
        os.close(theirs)
        return Fork(pid, ours)
    try:
        be_a_fork(work, parent, theirs)
    finally:
        os._exit(1)  # without what the parent does at its end


def be_a_fork(work: Callable[[], Any], parent: int, pipe: int) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, who ends this one
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    torch.set_num_threads(1)  # the other threads of OpenMP are the parent's alone
    try:
        answer = pickle.dumps((work(), None))
    except Exception as error:
        if AUTOGRAD in str(error):
            return  # it is done in the parent
        answer = pickled_error(error)
    with open(pipe, "wb") as file:
        file.write(SIZE.pack(len(answer)) + answer)


def pickled_error(error: Exception) -> bytes:
    """The error with its traceback: a RuntimeError of the same text for one that pickle does not take, a MemoryError
    for one that says that memory ran out, perhaps by its cause alone, which pickle leaves out.
    """
    text = "".join(traceback.format_exception(error))
    if out_of_memory(error):
        error = MemoryError(f"{type(error).__name__}: {error}")
    try:
        pickle.loads(found := pickle.dumps((None, (error, text))))
        return found
    except Exception:
        return pickle.dumps((None, (RuntimeError(f"{type(error).__name__}: {error}"), text)))


def result_of(answer: bytes) -> Any:
    result, failed = pickle.loads(answer)
    if failed is None:
        return result
    error, text = failed
    error.add_note(f"In a process that shared the examples:\n{text}")
    raise error
