"""The package that tests of packages have too, and what a server says in its log."""

import logging

import pytest

from tests.jobs.packages.conftest import made, measured, place, trained

__all__ = ["made", "measured", "place", "trained"]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """Errors that are logged, also after a command has taken the logger for itself."""
    monkeypatch.setattr(logging.getLogger("robustq"), "propagate", True)
    caplog.set_level(logging.ERROR)
    return caplog
