"""A store with a small graph of jobs: two trainings, two evaluations of each, a worst case of each."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustq.jobs.store.connection import Store, open_store
from tests.helpers import fake_results
from tests.helpers.small_store import filled


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without jobs, made once: tests get copies of it."""
    path = tmp_path_factory.mktemp("stores") / "empty.db"
    open_store(str(path), create=True, write=True).engine.dispose()
    return path


@pytest.fixture(scope="session")
def asked_file(empty_file: Path) -> Path:
    """A store of results made up, made once: tests get copies of it."""
    path = Path(shutil.copy(empty_file, empty_file.with_name("asked.db")))
    store = open_store(str(path), write=True)
    fake_results.fill(store)
    store.engine.dispose()
    return path


@pytest.fixture
def sqlite_store(tmp_path: Path, empty_file: Path) -> Iterator[Store]:
    with filled(str(shutil.copy(empty_file, tmp_path / "results.db"))) as store:
        yield store


@pytest.fixture
def made_up(tmp_path: Path, empty_file: Path) -> Iterator[Store]:
    """An empty store, for sweeps that are made up: see tests/helpers/fake_sweep.py."""
    store = open_store(str(shutil.copy(empty_file, tmp_path / "results.db")), write=True)
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
    if request.param == "sqlite":
        store = open_store(str(shutil.copy(request.getfixturevalue("asked_file"), tmp_path / "r.db")), write=True)
    else:
        store = open_store(request.getfixturevalue("postgres"), create=True, write=True)
        fake_results.fill(store)
    yield store
    store.engine.dispose()
