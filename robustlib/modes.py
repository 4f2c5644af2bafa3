"""The modes a model runs in: arithmetic, memory layout, training or evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def strict_float32() -> Iterator[None]:
    """Float32 that is float32: no TF32 in convolutions or matrix products, by which peers judge without saying so."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for training: bfloat16 where asked for, or where "auto" finds a CUDA device that has it."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
    wanted = precision == "bfloat16" or (precision == "auto" and has_it)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, each of its layers put back afterwards."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def layout(model: nn.Module) -> torch.memory_format:
    """Channels-last where the model's convolutions are kept so, else contiguous, which any model can take."""
    kernels = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    last = any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    return torch.channels_last if last else torch.contiguous_format


def as_images(x: Tensor, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Images as floats in [0, 1] on the device, from uint8 or from floats that are so already.

    Raises ValueError for floats outside [0, 1].
    """
    if x.dtype == torch.uint8:
        return x.to(device, memory_format=memory_format).float().div_(255)
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"expected images in [0, 1], got values from {low:.4g} to {high:.4g}: "
            "leave normalisation to the model's first layer"
        )
    return x.to(device, torch.float32, memory_format=memory_format)
