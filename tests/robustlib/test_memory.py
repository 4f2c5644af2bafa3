"""Memory that ran out is told from other errors, and fewer images are tried."""

import errno
from itertools import chain

import pytest
import torch

from robustlib.evaluation.batches import fitting
from robustlib.inference.batch_sizes import batch_sizes
from robustlib.memory import Pieces, as_many_as_fit, free_memory, out_of_memory, process_memory
from tests.helpers.torch_errors import AcceleratorError


# In their own words; the last of each is of the libraries that PyTorch calls.
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
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
        AcceleratorError("CUDA error: device-side assert triggered"),
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
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


@pytest.mark.parametrize(("holds", "tried"), [(10, [10]), (4, [10, 5, 2, 2, 2, 2, 2]), (1, [10, 5, 2, *[1] * 10])])
def test_work_is_done_in_pieces_that_memory_holds(holds: int, tried: list[int]):
    seen: list[int] = []

    def work(rows: slice) -> list[int]:
        seen.append(rows.stop - rows.start)
        if seen[-1] > holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(range(10))[rows]

    pieces = Pieces()
    assert [*chain(*pieces.of(10, work))] == [*range(10)] and seen == tried
    seen.clear()
    assert [*chain(*pieces.of(10, work))] == [*range(10)] and max(seen) <= holds  # it has learnt


def test_a_row_that_memory_does_not_hold_is_an_error():
    def never(rows: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Pieces().of(4, never)
    assert Pieces().of(0, lambda rows: rows) == [slice(0, 0)]


GPU = torch.device("cuda:0")


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "share", "expected"),
    [
        (80, 0, 0, 1.0, 80),
        (80, 0, 0, 1 / 8, 10),  # the card is empty, and an eighth of it is this process's
        (30, 6, 2, 1 / 8, 8),  # 4 more, and 4 that it keeps unused
        (2, 6, 6, 1 / 2, 2),  # others have the rest
        (80, 12, 12, 1 / 8, 0),  # its share is less than it holds
    ],
)
def test_memory_is_that_of_the_share(free, reserved, allocated, share, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated * 2**30)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    assert free_memory(GPU) == expected * 2**30
    assert process_memory(GPU) == 80 * share * 2**30
    x = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    assert fitting(x, GPU) == max(16, min(8192, expected * 2**30 // 4 // (80 * x.numel())))
    if share == 1 / 8 and expected == 10:
        assert fitting(x, GPU) == 222  # an eighth of what the card would hold


@pytest.mark.parametrize(
    ("pixels", "dtype", "gib", "sizes"),
    [
        (32, torch.float16, 80, (128, 512, 2048)),
        (32, torch.float32, 80, (128, 512, 2048)),
        (32, torch.float16, 10, (32, 128, 512)),
        (224, torch.float16, 80, (8, 32, 128)),
        (224, torch.float32, 80, (8, 32)),
        (224, torch.float16, 10, (8,)),
        (1024, torch.float32, 4, (8,)),  # the least; it halves itself where that is too much
    ],
)
def test_batch_sizes_on_a_gpu_are_those_whose_pass_fits(pixels: int, dtype, gib: int, sizes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, gib * 2**30))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)

    class OnGpu:
        device = GPU

        def __getitem__(self, place: int) -> torch.Tensor:
            return torch.empty(3, pixels, pixels, device="meta")

    found = batch_sizes(OnGpu(), dtype)  # pyright: ignore[reportArgumentType]
    assert found == sizes
    # The largest pass keeps at most a quarter of the memory, by what was counted of networks for small images.
    assert found == (8,) or 450 * 3 * pixels**2 * dtype.itemsize * found[-1] <= gib * 2**30 / 4
