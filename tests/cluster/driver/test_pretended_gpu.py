"""Runs through real Ray on a GPU as far as a CPU can pretend one: see tests/helpers/pretended_gpu.py for what is real."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import sqlalchemy as sa

from robustq.cluster import ray_connection, ray_workers
from robustq.cluster.driver.drive import drive
from robustq.cluster.slots import Slots
from robustq.jobs.queue import transitions
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, job, result
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from tests.helpers import pretended_gpu

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

MODEL = """
import sys, time
import torch

class Net(torch.nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share, self.slept = share, False

    def forward(self, x):
        if "default_worker" in sys.argv[0]:  # and not where it is looked at before it is queued
            if torch.cuda.get_per_process_memory_fraction() < self.share:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            if not self.slept:
                self.slept = True
                time.sleep(4)
        return x.flatten(1)[:, :10]

def small(): return Net(0.0)
def hungry(): return Net(0.5)
"""


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bundles run where a GPU is pretended; crashes are tried again at once."""
    monkeypatch.setenv("ROBUSTQ_RAY", "1")  # also where one slot is enough
    ray = ray_connection.import_ray()
    ray.cloudpickle.register_pickle_by_value(pretended_gpu)
    monkeypatch.setattr(ray_workers, "bundle_task", pretended_gpu.bundle_on_a_pretended_gpu)
    monkeypatch.setattr(transitions, "BACKOFF_SECONDS", 0.01)
    ray_workers.remote_bundle.cache_clear()
    yield
    ray_workers.remote_bundle.cache_clear()
    ray.cloudpickle.unregister_pickle_by_value(pretended_gpu)


def test_two_processes_share_a_gpu_and_one_of_them_runs_out_of_memory(tmp_path: Path):
    (tmp_path / "mine.py").write_text(MODEL)
    models = {name: {"file": f"mine.py:{name}"} for name in ("small", "hungry")}
    given = {"name": "shared", "models": models, "attacks": [{"name": "fgsm", "eps": [0.05, 0.1]}], "examples": 20}
    study = Study.model_validate(given)
    store, *_ = submit(str(tmp_path / "r.db"), study, Origin("shared", {}, {}), tmp_path, data_folder=tmp_path)
    with store.begin() as db:  # as an earlier job of each has taught, of both too little
        db.execute(sa.update(job).where(job.c.kind == "eval").values(gpu_share=0.25))
    assert {state: n for state, n in drive(store, slots=Slots(1, 1, 2)).items() if n} == {"done": 6}
    with store.begin() as db:
        chosen = sa.select(attempt, job.c.spec, job.c.gpu_share).join(job).where(job.c.kind == "eval")
        rows = db.execute(chosen).mappings().all()
        devices = db.execute(sa.select(result.c.device).join(job).where(job.c.kind == "eval")).scalars().all()
    assert set(devices) == {f"cuda: {pretended_gpu.NAME}"} and len(devices) == 4
    assert {row["gpu_ids"] for row in rows} == {"0"}  # CUDA_VISIBLE_DEVICES, as Ray sets it in each process
    hungry = [row for row in rows if "hungry" in str(row["spec"]["model"])]
    assert sorted(row["outcome"] for row in hungry) == ["done", "done", "out of memory", "out of memory"]
    assert {row["gpu_share"] for row in hungry} == {0.5}
    small = [row for row in rows if row not in hungry]
    assert [row["outcome"] for row in small] == ["done", "done"] and {row["gpu_share"] for row in small} == {0.25}
    at_once = [(one, other) for one, other in combinations(rows, 2) if overlap(one, other)]
    assert any(one["pid"] != other["pid"] for one, other in at_once)
    store.engine.dispose()


def overlap(one, other) -> bool:
    return one["started_at"] < other["ended_at"] and other["started_at"] < one["ended_at"]


def test_a_gpu_that_is_broken_gets_nothing_more_and_the_queue_is_done(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(pretended_gpu.BROKEN, "0")
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    submit_probes(store, 12, seconds=0.2)
    told: list[str] = []
    assert drive(store, slots=Slots(2, 1, 1), tell=told.append)["done"] == 12
    assert len(told) == 1 and "GPU 0 of " in told[0] and "uncorrectable ECC error" in told[0]
    with store.begin() as db:
        rows = db.execute(sa.select(attempt.c.gpu_ids, attempt.c.outcome)).all()
    assert [row.outcome for row in rows if row.gpu_ids == "0"] == ["crashed"] * 3
    assert [row.outcome for row in rows if row.gpu_ids == "1"] == ["done"] * 12
    store.engine.dispose()
