"""`benchmarks/request_certificates.py`, small: it compares, attacks, and says what is wrong."""

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor, nn

from benchmarks import request_certificates as benchmark
from robustlib.inference.replica import Replica

SMALL = ["--arch", "lenet5", "--epochs", "2", "--examples", "600", "--images", "8", "--n", "400", "--steps", "2"]


@pytest.mark.slow
def test_it_tells_votes_decisions_and_attacks():
    """Of a network that has seen little: whatever holds does so offline, and under attack."""
    found = CliRunner().invoke(benchmark.main, [*SMALL, "--draws", "2", "--radius", "0.1", "--sigma", "0.25"])
    assert "radius 0.1: holds for " in found.output and "votes an image, at 25, 50, 75, 95 and 100 %: " in found.output
    assert found.exit_code == 0 or "wrong: more than a fifth of 400 votes" in found.output, found.output
    assert "wrong: radius" not in found.output  # neither another decision than offline, nor another class


@pytest.fixture
def case(net: nn.Module, test: tuple[Tensor, Tensor]) -> Any:
    return benchmark.Case(net, Replica(net), test[0][:12], test[1][:12], 0.3, (0.15,), 500, 0.001)


def test_another_decision_than_offline_is_a_fault(case: Any):
    found, _ = benchmark.decided(case, case.x, case.radii)
    offline, _ = benchmark.certified(case)
    assert benchmark.compare(case, found, offline) == []
    low, high = benchmark.spans_of(case, offline)
    assert (low <= offline.radius).all() and (high >= offline.radius).all() and (low > 0.15).any()
    turned = replace(found, holds=~found.holds)
    assert benchmark.compare(case, turned, offline) == ["radius 0.15: another decision or class than offline"]


def test_an_attack_that_changes_a_class_is_a_fault(case: Any):
    """Where a radius is said to hold that does not: eight times as far."""
    found, _ = benchmark.decided(case, case.x, case.radii)
    assert found.holds.sum() > 3 and benchmark.attack(case, found, 3, 2) == []
    (fault,) = benchmark.attack(replace(case, radii=(1.2,)), found, 5, 4)
    assert fault.startswith("radius 1.2: ") and fault.endswith("attacked images get another class")
