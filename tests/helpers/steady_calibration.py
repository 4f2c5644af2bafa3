"""Calibrations of made-up rates: attacks take as long as their passes, nothing besides."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from robustlib.inference.throughput import Rates, Work
from robustq.jobs.specs import ModelSpec, TrainSpec
from robustq.jobs.submission.calibration import Calibrations


class SteadyCalibration:
    """A model with these rates, that is yet to be trained."""

    ready_seconds, randomised, correct = 0.0, False, None

    def __init__(self, rates: Rates, classes: int = 10):
        self.rates = rates
        self.ready = SimpleNamespace(classes=classes)

    def seconds(self, work: Work) -> float:
        return self.rates.seconds(work)

    def slower(self, *args: Any) -> float:
        return 1.0

    def explaining(self, arguments: Any, work: Work) -> tuple[float, float]:
        return 0.0, self.rates.seconds(work)

    def standing(self, *args: Any) -> float | None:
        return None


def fix_rates(patch: pytest.MonkeyPatch, rates: Callable[[ModelSpec], Rates], epoch: float = 2.0) -> None:
    """From now on models have these rates, and an epoch of any training takes so many seconds."""
    found: Any = lambda self, model, *args, **named: SteadyCalibration(rates(model))  # noqa: E731
    trained: Callable[[Calibrations, TrainSpec], float] = lambda self, spec: epoch  # noqa: E731
    patch.setattr(Calibrations, "of", found)
    patch.setattr(Calibrations, "epoch", trained)
