"""A store with a trained and attacked network, and a package of it, made once for all tests here."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustq.jobs.packages import monitored
from robustq.jobs.packages.make import Made
from robustq.jobs.store.connection import Store
from tests.helpers.drain_queue import worked_off
from tests.helpers.packaged import MEASURED, QUICK, STUDY, TRAINED, packaged


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    torch.set_num_threads(1)
    store = worked_off(tmp_path_factory.mktemp("packages") / "store", STUDY)
    yield store
    store.engine.dispose()


@pytest.fixture(scope="session")
def made(trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return packaged(trained, TRAINED, tmp_path_factory.mktemp("packages") / "net")


@pytest.fixture(scope="session")
def measured(trained: Store, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same with the rates of signals, on few images and by short attacks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"ATTACKED": 12, "QUERIED": 3, "QUERIES": 30, "STEPS": 6}.items():
            patch.setattr(monitored, name, value)
        asked = replace(QUICK, monitored=MEASURED)
        return packaged(trained, TRAINED, tmp_path_factory.mktemp("measured") / "net", asked)


@pytest.fixture
def place(made: Made) -> Path:
    """The package's folder: tests alter copies of it."""
    return made.place
