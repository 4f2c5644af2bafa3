"""A store with a small graph of jobs: two trainings, two evaluations of each, a worst case of each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from robustq.jobs.store.connection import Store, open_store
from tests.helpers import fake_results
from tests.helpers.small_store import filled


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    with filled(str(tmp_path / "results.db")) as store:
        yield store


@pytest.fixture
def made_up(tmp_path: Path) -> Iterator[Store]:
    """An empty store, for sweeps that are made up: see tests/helpers/fake_sweep.py."""
    store = open_store(str(tmp_path / "results.db"), create=True, write=True)
    yield store
    store.engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """On each of the databases that robustq knows."""
    name = "sqlite_store" if request.param == "sqlite" else "postgres"
    given = request.getfixturevalue(name)
    if request.param == "sqlite":
        yield given
        return
    with filled(given) as store:
        yield store


@pytest.fixture
def asked_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of results made up, on the database of the parameter."""
    url = str(tmp_path / "r.db") if request.param == "sqlite" else request.getfixturevalue("postgres")
    store = open_store(url, create=True, write=True)
    fake_results.fill(store)
    yield store
    store.engine.dispose()
