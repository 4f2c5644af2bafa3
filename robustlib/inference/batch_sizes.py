"""The fixed batch sizes at which models are called, by the images' size and device."""

from collections.abc import Iterator

import torch
from torch import Tensor

from robustlib.memory import process_memory

# Measured: sizes that are multiples of 8 agree to the bit, with one thread and with two, where convolutions are in
# bfloat16 or float32 and matrices in float32; on some CPUs not the smallest one: see steady_sizes in fast_copy.py.
CPU_SIZES = (*range(8, 136, 8), 256, 512)
CPU_BYTES = 4 * 64 * 3 * 32 * 32  # of the images of a pass, of whose activations a CPU's caches still hold enough
CUDA_SIZES = (8, 32, 128, 512, 2048)  # of which the largest three that fit are taken: (128, 512, 2048) for CIFAR's
# Bytes of activations that a pass keeps for its gradient, for each byte of its images: twice what was counted of
# ResNet-18 on CIFAR's images, 222; ResNet-50 at 224 pixels keeps 66. What needs more halves itself.
ACTIVATIONS = 450
PART = 0.25  # of the memory that the process may have for one pass: beside it lie other copies and what attacks keep


def batch_sizes(x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """The fixed batch sizes for images like these, in this arithmetic, on their device."""
    if x.device.type == "cuda":
        most = PART * process_memory(x.device) / (ACTIVATIONS * x[0].numel() * dtype.itemsize)
        return tuple(size for size in CUDA_SIZES if size <= most)[-3:] or CUDA_SIZES[:1]
    return tuple(
        size for size in CPU_SIZES if size == CPU_SIZES[0] or size * x[0].numel() * dtype.itemsize <= CPU_BYTES
    )


def groups(n: int, size: int) -> Iterator[range]:
    """The numbers below n, so many at a time."""
    return (range(first, min(first + size, n)) for first in range(0, n, size))
