"""Errors of exhausted memory, in all their forms: no model is to blame for these. What a GPU has of it."""

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

from robustlib.gpu_failures import chain, named

Found = TypeVar("Found")

# Within the words of a RuntimeError, torch.AcceleratorError among them: of CUDA, of cuBLAS, cuDNN and their kin, and of
# PyTorch's allocator on a CPU. The libraries are made ready at their first call, which takes memory: where there is
# none they say that they are not.
WORDS = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_not_initialized",
    "cusolver_status_not_initialized",
    "cusparse_status_not_initialized",
    "cudnn_status_not_initialized",
)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the error says that memory ran out, a GPU's or the machine's, or came while such a one was handled: the
    end of a recording that failed hides it.
    """
    return any(says_so(one) for one in chain(error))


def says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return any(words in text for words in WORDS) and named(text) is None


def as_many_as_fit(look: Callable[[int], Found], most: int) -> Found:
    """What `look(n)` gives for the most images that memory holds: `most`, half of them, down to one.

    Raises what came where it does not hold even one.
    """
    n = max(most, 1)
    while True:
        try:
            return look(n)
        except Exception as error:
            if n == 1 or not out_of_memory(error):
                raise
        n //= 2
        free()  # out of the block, where the error no longer holds what was to be freed


class Pieces:
    """Work on many rows, in pieces of as many as memory was found to hold: all, half of them, down to one."""

    def __init__(self) -> None:
        self.most: int | None = None

    def of(self, n: int, work: Callable[[slice], Found]) -> list[Found]:
        """What comes of the pieces of n rows. Raises what came where memory does not hold even one row."""
        found, first = list[Found](), 0
        while first < n or not found:
            rows = slice(first, min(n, first + (self.most or n)))
            try:
                found.append(work(rows))
                first = rows.stop
                continue
            except Exception as error:
                if rows.stop - first <= 1 or not out_of_memory(error):
                    raise
            self.most = (rows.stop - first) // 2
            free()
        return found


def free() -> None:
    """Give back what PyTorch keeps of a GPU's memory."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # up to torch 2.12 it raises for ever once a recording has failed
            torch.cuda.empty_cache()


def process_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may hold at most: its share of the whole card."""
    return int(torch.cuda.mem_get_info(device)[1] * share_of(device))


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process may still take: what is free of its share, and no more than is free at all; and
    what PyTorch keeps for it unused.
    """
    held = torch.cuda.memory_reserved(device)
    kept = held - torch.cuda.memory_allocated(device)
    return max(0, min(torch.cuda.mem_get_info(device)[0], process_memory(device) - held)) + kept


def share_of(device: torch.device) -> float:
    """What `torch.cuda.set_per_process_memory_fraction` was given; 1 where nobody did, or PyTorch does not tell."""
    told = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return 1.0 if told is None else told(device)
