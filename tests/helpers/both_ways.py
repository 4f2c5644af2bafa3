"""Runs with Ray and without: the same test for both."""

import pytest

RAY = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
# Values of ROBUSTQ_RAY. A run of one slot has a child process for its jobs, unless it is told to have a Ray.
WAYS = [pytest.param("0", id="child"), pytest.param("1", id="ray", marks=RAY)]
both_ways = pytest.mark.parametrize("way", WAYS)
