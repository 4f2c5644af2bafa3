"""Launches and utilisation of a device during a call, by PyTorch's profiler."""

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.autograd.profiler_util import FunctionEvent

from robustlib.inference.throughput import wait

LAUNCHES = ("LaunchKernel", "GraphLaunch")  # in the names of the runtime's calls: cudaLaunchKernelExC, cudaGraphLaunch


def profiled(call: Callable[[], object], steps: int, device: torch.device) -> Iterator[tuple[float, str]]:
    """Numbers and their units for a call of so many steps: of a GPU what it is given to do and for how much of the time
    it is busy; of a CPU, which has neither, the calls of operators.
    """
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        start = time.perf_counter()
        call()
        wait()
        seconds = time.perf_counter() - start
    events = list(profiler.events() or [])
    if device.type != "cuda":
        yield operator_calls(events) / steps, "operator calls a step"
        return
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    if not on_device:
        raise RuntimeError("the profiler saw nothing on the device, which may want permissions for that")
    yield launches(events) / steps, "launches a step"
    yield len(on_device) / steps, "kernels and copies a step"
    # The profiler makes the host slower: the device may be busier without it.
    yield busy((e.time_range.start, e.time_range.end) for e in on_device) / 1e6 / seconds, "utilisation"


def operator_calls(events: Iterable[FunctionEvent]) -> int:
    """Operators that no other one called."""
    inner = ("aten::",)
    return sum(
        event.name.startswith(inner) and (event.cpu_parent is None or not event.cpu_parent.name.startswith(inner))
        for event in events
    )


def launches(events: Iterable[FunctionEvent]) -> int:
    """Calls that give the device something to do: a kernel, or a whole graph of them."""
    return sum(any(word in event.name for word in LAUNCHES) for event in events)


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """How much time the spans cover together; kernels of several streams overlap."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
