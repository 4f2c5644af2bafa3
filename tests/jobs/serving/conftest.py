"""The package that tests of packages have too, and what a server says in its log."""

import logging

import pytest

from robustq.jobs.serving import server
from tests.jobs.packages.conftest import made, measured, place, trained

__all__ = ["made", "measured", "place", "trained"]


@pytest.fixture(autouse=True)
def a_short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends waits for nobody who would ask it a last time."""
    monkeypatch.setattr(server, "LAST_SECONDS", 0.0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Errors that are logged, also after a command has taken the logger for itself."""
    monkeypatch.setattr(logging.getLogger("robustq"), "propagate", True)
    caplog.set_level(logging.ERROR)
    return caplog
