"""Errors of exhausted memory, in all their forms: no model is to blame for these."""

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


def free() -> None:
    """Give back what PyTorch keeps of a GPU's memory."""
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # up to torch 2.12 it raises for ever once a recording has failed
            torch.cuda.empty_cache()
