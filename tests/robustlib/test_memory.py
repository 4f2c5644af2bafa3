"""Memory that ran out is told from other errors, and fewer images are tried."""

import errno

import pytest
import torch

from robustlib.memory import as_many_as_fit, out_of_memory


# In their own words; the last of each is of the libraries that PyTorch calls.
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:60],
)
def test_memory_that_ran_out(error: Exception):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        ValueError("gave no answer in 3 tries: HTTP 500 out of memory"),  # a server's memory, which is not ours
        OSError(errno.ENOENT, "No such file or directory"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:60],
)
def test_other_errors(error: Exception):
    assert not out_of_memory(error)


def test_an_allocator_says_so_itself():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert out_of_memory(raised.value)


@pytest.mark.parametrize(("holds", "tried"), [(64, [64]), (7, [64, 32, 16, 8, 4]), (1, [64, 32, 16, 8, 4, 2, 1])])
def test_fewer_are_tried_down_to_one(holds: int, tried: list[int]):
    seen: list[int] = []

    def look(n: int) -> int:
        seen.append(n)
        if n > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return n

    assert (as_many_as_fit(look, 64), seen) == (tried[-1], tried)


def test_what_cannot_hold_one_is_raised_and_so_is_any_other_error():
    def never(n: int) -> int:
        raise MemoryError

    def wrong(n: int) -> int:
        if n < 64:
            raise AssertionError("tried again")
        raise RuntimeError("shapes")

    with pytest.raises(MemoryError):
        as_many_as_fit(never, 64)
    with pytest.raises(RuntimeError, match="shapes"):
        as_many_as_fit(wrong, 64)


def test_the_end_of_a_recording_does_not_hide_that_memory_ran_out():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("operation failed"))
