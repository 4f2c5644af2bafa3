"""A cache of its own for a test that reads data sets, and a place for its data."""

from pathlib import Path

import pytest


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ROBUSTQ_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROBUSTQ_DATA", raising=False)
    return tmp_path / "home"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "set"
