"""Settings shared by all tests: a home of their own, so that no test reads or writes the user's caches."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Decoded once for the whole run, not once a test; the worker processes of Ray read it from the environment.
KEPT = os.environ.get("ROBUSTQ_TEST_HOME")


TRAINED = {"net", "nets", "trained", "learnt"}  # fixtures that train a network


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TRAINED & set(getattr(item, "fixturenames", ())):
            item.add_marker("trained")


@pytest.fixture(scope="session", autouse=True)
def robustq_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = Path(KEPT) if KEPT else tmp_path_factory.mktemp("robustq-home")
    os.environ["ROBUSTQ_HOME"] = str(home)
    for name in ("ROBUSTQ_STORE", "ROBUSTQ_DATA", "ROBUSTQ_ARTIFACTS"):
        os.environ.pop(name, None)
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))  # no run outside is a test's neighbour
    return home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks gain nothing from a second thread, and lose much where the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_threads(request: pytest.FixtureRequest) -> None:
    """Whatever the test before asked for. The kernels' tests have large batches, for which two are quicker."""
    import torch

    alone = "PYTEST_XDIST_WORKER" not in os.environ  # else other tests have the other cores
    torch.set_num_threads(2 if alone and "/robustlib/" in request.node.nodeid else 1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with CIFAR-10 and a published network (docs/environment.md); without one the test is skipped."""
    if not (folder := os.environ.get("ROBUSTQ_TEST_DATA")):
        pytest.skip("needs CIFAR-10 and a published network: set ROBUSTQ_TEST_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    from tests.helpers.postgres_server import server

    with server() as url:
        yield url


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own."""
    from tests.helpers.postgres_server import database

    with database(postgres_server) as url:
        yield url
