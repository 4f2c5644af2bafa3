"""The cost of an attack: passes an example, and how many a second this device makes of this model."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlib.inference.batched_model import BatchedModel
from robustlib.inference.oracle import Oracle


@dataclass(frozen=True)
class Work:
    """Passes of one example: forward, and gradients besides."""

    forwards: int
    gradients: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.forwards + other.forwards, self.gradients + other.gradients)

    def __mul__(self, times: int) -> "Work":
        return Work(self.forwards * times, self.gradients * times)


@dataclass(frozen=True)
class Rates:
    """Images a second: passed forward alone, and forward and back; NaN for a model that has no gradient."""

    forwards: float
    gradients: float

    def seconds(self, work: Work) -> float:
        """NaN for gradients of a model that has none."""
        if work.gradients == 0:
            return work.forwards / self.forwards
        # A gradient's own pass forward is part of its rate.
        return (work.forwards - work.gradients) / self.forwards + work.gradients / self.gradients


def stepped(steps: int) -> Work:
    return Work(steps, steps)


VERDICTS = Work(3)  # the clean pass, that of the attacks in turn, and the one that counts


Clock = Callable[[], float]


def calibrate(replica: BatchedModel, x: Tensor, *, seconds: float = 2.0, clock: Clock = time.perf_counter) -> Rates:
    """Images a second through the replica at its largest batch size, forward and with a gradient, half the time each.

    x: some images on the replica's device; repeated to fill the batch.  clock: gives seconds.
    """
    return rates_at(replica, x, replica.sizes[-1] if replica.sizes else len(x), seconds=seconds, clock=clock)


def rates_at(oracle: Oracle, x: Tensor, size: int, *, seconds: float = 2.0, clock: Clock = time.perf_counter) -> Rates:
    """The same of any oracle, asked about so many images at once."""
    x = x.repeat(-(-size // len(x)), *[1] * (x.ndim - 1))[:size]
    calls = (lambda: oracle(x), lambda: oracle.values_and_grads(x, lambda z: z[:, :1]))
    forwards = rate(calls[0], size, seconds / 2, clock)
    try:
        return Rates(forwards, rate(calls[1], size, seconds / 2, clock))
    except ValueError:  # the model has no gradient
        return Rates(forwards, math.nan)


def rate(call: Callable[[], object], size: int, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Images a second of a call on `size` images; its first two runs are not counted, or its first where one takes as
    long as all are to take.
    """
    if timed(call, clock) < seconds:
        call()
    wait()
    start, runs = clock(), 0
    while runs == 0 or clock() - start < seconds:
        call()
        wait()
        runs += 1
    return size * runs / (clock() - start)


def timed(call: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    wait()
    start = clock()
    call()
    wait()
    return clock() - start


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
