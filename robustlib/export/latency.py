"""The time that a program takes for a batch, on this machine's CPU. Free of torch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BATCHES = (1, 32)
WARM_UP, MOST_RUNS, LEAST_RUNS = 5, 500, 20


@dataclass(frozen=True)
class Latency:
    """Seconds of a call: half of the runs took at most p50, 99 of 100 at most p99."""

    batch: int
    p50: float
    p99: float
    runs: int


def latencies(call: Callable[[np.ndarray], object], x: np.ndarray, seconds: float = 2.0) -> list[Latency]:
    """The times of calls with one image and with 32. x: images, shape (N, C, H, W).  seconds: that each may take."""
    return [latency(call, x[np.arange(batch) % len(x)], seconds) for batch in BATCHES]


def latency(call: Callable[[np.ndarray], object], x: np.ndarray, seconds: float) -> Latency:
    for _ in range(WARM_UP):
        call(x)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - start)
    return Latency(len(x), float(np.percentile(times, 50)), float(np.percentile(times, 99)), len(times))
