"""PyTorch's switches for float32 arithmetic, which belong to the process: read, set, and held as long as needed."""

import threading
from contextlib import suppress
from typing import Any

import torch

# Before torch 2.9 the old switches were all there were: TF32 on GPUs, and bfloat16 in matrix products on CPUs.
FINE = hasattr(torch._C, "_get_fp32_precision_getter")
# Whatever computes float32 in fewer bits where it may: TF32 on GPUs, TF32 or bfloat16 on CPUs.
PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn") if FINE else ()
# What those follow that were not set themselves, by PyTorch's names of backends. In this order: the others follow the
# first. The public `torch.backends.mkldnn.fp32_precision` writes the first (torch 2.14).
GENERAL = ("generic", "cuda", "mkldnn") if FINE else ()


def switch(name: str) -> Any:
    backend, operation = name.split(".")
    return getattr(getattr(torch.backends, backend), operation)


LOOKED_AT = tuple(switch(name) for name in PRECISIONS[:-1])


class Switches:
    """PyTorch's switches for float32, which belong to the whole process: the first evaluation or thread that holds them
    notes how they stood, the last one puts them back, in whatever order they come and go.
    """

    def __init__(self) -> None:
        self.lock, self.holders = threading.Lock(), 0
        self.before: dict[str, Any] = {}

    def hold(self) -> None:
        with self.lock:
            if self.holders == 0:
                self.before = read_switches()
            self.holders += 1
            # Looked at again at every entry: a user's model may have moved them.
            if self.holders == 1 or not is_strict():
                write_switches({"cudnn": False, "matmul": "highest"} | dict.fromkeys(PRECISIONS, "ieee"))

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0:
                write_switches(self.before)


SWITCHES = Switches()


def is_strict() -> bool:
    """Whether nothing has moved the switches that are held."""
    if FINE:
        return all(found.fp32_precision == "ieee" for found in LOOKED_AT)
    return not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"


def read_switches() -> dict[str, Any]:
    found: dict[str, Any] = {name: torch._C._get_fp32_precision_getter(name, "all") for name in GENERAL}
    found |= {name: switch(name).fp32_precision for name in PRECISIONS}
    with suppress(RuntimeError):  # it contradicts the new ones already
        found["cudnn"] = torch.backends.cudnn.allow_tf32
    with suppress(RuntimeError):
        found["matmul"] = torch.get_float32_matmul_precision()
    return found


def write_switches(wanted: dict[str, Any]) -> None:
    """The general ones first, since others follow them. The old switches go with the new ones: where they differ,
    PyTorch raises in whatever reads the old ones, as `torch.backends.cudnn.flags` in a user's model does.
    """
    for name in GENERAL:
        if name in wanted:
            torch._C._set_fp32_precision_setter(name, "all", wanted[name])
    if "cudnn" in wanted:
        torch.backends.cudnn.allow_tf32 = wanted["cudnn"]
    if "matmul" in wanted:
        torch.set_float32_matmul_precision(wanted["matmul"])
    for name in PRECISIONS:
        switch(name).fp32_precision = wanted[name]
