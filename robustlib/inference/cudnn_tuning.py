"""Strict float32 on a GPU at its best: convolutions by the algorithm that cuDNN measures to be the fastest."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

RUNS = 3
MUCH = 0.95  # of the time: below it another layout is worth while


class Tuning:
    """cuDNN's autotuning, a switch of the whole process: the first thread that holds it notes how it stood, the last
    one puts it back. It measures each shape of images once, so it is for fixed batch sizes alone.
    """

    def __init__(self) -> None:
        self.lock, self.holders, self.before = threading.Lock(), 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.holders == 0:
                self.before = torch.backends.cudnn.benchmark
            self.holders += 1
            torch.backends.cudnn.benchmark = True
        try:
            yield
        finally:
            with self.lock:
                self.holders -= 1
                if self.holders == 0:
                    torch.backends.cudnn.benchmark = self.before


tuned = Tuning()


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The shortest of some runs on the GPU, after one that is not counted."""
    call()
    found = []
    for _ in range(RUNS):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)
