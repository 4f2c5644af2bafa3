"""PyTorch's switches that belong to the whole process, noted before somebody else's code and put back after it.

A model's file may set them when it is imported, and every later job of the process would run under them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from robustlib.inference.float32_switches import read_switches, write_switches


def read() -> dict[str, Any]:
    """The switches as they stand, by names that a person knows."""
    return {
        "torch.set_default_dtype": torch.get_default_dtype(),
        "torch.set_default_device": default_device(),
        "torch.set_grad_enabled": torch.is_grad_enabled(),
        "torch.set_num_threads": torch.get_num_threads(),
        "torch.use_deterministic_algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.deterministic": torch.backends.cudnn.deterministic,
        "torch.backends.cudnn.enabled": torch.backends.cudnn.enabled,
        "TF32": read_switches(),
    }


def default_device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # of torch 2.6, once a default was taken back
        return torch.device("cpu")


def write(name: str, value: Any) -> None:
    match name:
        case "torch.set_default_device":
            torch.set_default_device(None if value.type == "cpu" else value)
        case "torch.use_deterministic_algorithms":
            torch.use_deterministic_algorithms(value[0], warn_only=value[1])
        case "TF32":
            write_switches(value)
        case _ if name.startswith("torch.backends.cudnn."):
            setattr(torch.backends.cudnn, name.rpartition(".")[2], value)
        case _:
            getattr(torch, name.removeprefix("torch."))(value)


@contextmanager
def put_back() -> Iterator[list[str]]:
    """The switches as they were, after the block, however it ends; the names of those that it changed."""
    before, changed = read(), list[str]()
    try:
        yield changed
    finally:
        after = read()
        for name, value in before.items():
            if after[name] != value:
                changed.append(name)
                write(name, value)
