"""The driver at work: a job that kills its worker ends alone, a running job can be cancelled, and one that takes too long.

On a child process and on a real Ray.
"""

import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from robustlib.number_text import counted
from robustq.cluster.driver.drive import drive
from robustq.cluster.slots import Slots
from robustq.jobs.queue import transitions, user_actions
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts, job_log
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from tests.helpers.both_ways import both_ways

pytestmark = pytest.mark.slow
ONE, TWO = Slots(1, 0, 1), Slots(2, 0, 1)

# What a model does to a worker, and not to the process that checks it before it is queued.
MODEL = """
import os, signal, sys, time
import torch

class Net(torch.nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        if any(name in sys.argv[0] for name in ("default_worker", "child_process")):
            self.act()
        return x.flatten(1)[:, :10]

def good(): return Net(lambda: None)
def poison(): return Net(lambda: os.kill(os.getpid(), signal.SIGKILL))
def sleepy(): return Net(lambda: time.sleep(300))
"""


def submitted(folder: Path, *factories: str, **entries: Any):
    (folder / "mine.py").write_text(MODEL)
    study = Study.model_validate(
        {
            "name": "faults",
            "models": {name: {"file": f"mine.py:{name}"} for name in factories},
            "attacks": [{"name": "fgsm", "eps": [0.05, 0.1]}],
            "examples": 20,
        }
        | entries
    )
    origin = Origin("faults", {}, {})
    return submit(str(folder / "r.db"), study, origin, folder, data_folder=folder)[0]


@pytest.fixture(autouse=True)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTQ_RAY", request.getfixturevalue("way"))


@both_ways
def test_a_poison_job_fails_for_its_own_reason_and_the_others_are_done(way, tmp_path, monkeypatch):
    monkeypatch.setattr(transitions, "BACKOFF_SECONDS", 0.01)
    store, crashes = submitted(tmp_path, "poison", "good"), 5 if way == "0" else 1
    with store.begin() as db:
        db.execute(sa.update(job).values(max_crashes=crashes))
    found = drive(store, slots=TWO if way == "1" else ONE)
    # Two evaluations and a worst case a model: the poisoned ones crashed as often as they may, and took their worst case
    # along.
    assert {state: n for state, n in found.items() if n} == {"done": 3, "failed": 3}
    with store.begin() as db:
        logs = [job_log(db, job_id) for job_id in db.execute(jobs_of(None)).scalars()]
    killed = [log for log in logs if log["error_class"] == "WorkerDied"]
    assert [len(log["attempts"]) for log in killed] == [crashes] * 2
    died = f"its worker died {counted(crashes, 'time')}, last: "
    assert all(log["error_message"].startswith(died) for log in killed)
    assert [log["error_class"] for log in logs if log["state"] == "failed"].count("UpstreamFailed") == 1
    # Nobody else lost more than the bundle that it shared.
    assert all(log["crashes"] == 0 for log in logs if log["state"] == "done")
    store.engine.dispose()


@both_ways
def test_a_running_job_can_be_cancelled(way, tmp_path):
    store = submitted(tmp_path, "sleepy")

    def cancel_when_it_runs() -> None:
        while True:
            time.sleep(0.1)
            with store.begin() as db:
                if counts(db)["running"]:
                    user_actions.cancel(db, jobs_of(None))
                    return

    canceller = threading.Thread(target=cancel_when_it_runs, daemon=True)
    canceller.start()
    found = drive(store, slots=ONE)
    canceller.join()
    assert {state: n for state, n in found.items() if n} == {"cancelled": 3}
    store.engine.dispose()


@both_ways
def test_a_job_over_its_limit_fails(way, tmp_path):
    store = submitted(tmp_path, "sleepy", timeout_seconds=2)
    drive(store, slots=ONE)
    with store.begin() as db:
        first, second, _ = (job_log(db, job_id) for job_id in sorted(db.execute(jobs_of(None)).scalars()))
    for log in (first, second):
        assert (log["state"], log["error_class"], len(log["attempts"])) == ("failed", "TimedOut", 1)
        assert log["error_message"] == "it ran longer than 2 seconds: timeout_seconds in its study is the limit"
    store.engine.dispose()


@both_ways
def test_small_jobs_share_a_gpu(way, tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    sweep_id = submit_probes(store, 4, seconds=3.0)
    with store.begin() as db:
        db.execute(sa.update(job).values(gpu_share=0.25))
    assert drive(store, sweep_id=sweep_id, slots=Slots(1, 1, 1))["done"] == 4
    with store.begin() as db:
        rows = db.execute(sa.select(attempt).order_by(attempt.c.started_at)).all()
    assert {row.gpu_ids for row in rows} == {"0"}
    # Two bundles of two, the second begun while the first had not ended.
    assert len({row.pid for row in rows}) >= 2
    assert any(a.pid != b.pid and b.started_at < a.ended_at for a, b in pairwise(rows))
    store.engine.dispose()
