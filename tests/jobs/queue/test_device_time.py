"""Device hours of made-up attempts, by hand."""

from typing import Any

import pytest
from sqlalchemy import insert, select, update

from robustq.jobs.commands import results_text
from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.queue.device_time import DeviceHours, device_hours
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import attempt, job

HOUR = 3600.0


def add(store: Store, job_id: int, n: int, hours: float, **values: Any) -> None:
    """An attempt that began at 0 and took so many hours."""
    named = {"fence": n, "driver_id": "one", "started_at": 0.0, "ended_at": hours * HOUR, "gpu_ids": ""}
    with store.begin() as db:
        db.execute(insert(attempt).values(job_id=job_id, n=n, **named | values))


def hours(store: Store, sweep_id: int | None = 1) -> tuple[float, float]:
    with store.begin() as db:
        found = device_hours(db, sweep_id)
    return found.gpu, found.cpu


def test_attempts_count_by_what_they_held(store: Store):
    assert hours(store) == (0, 0) and results_text.closing_lines(store, 1) == ""
    add(store, 1, 1, 2.0, gpus=0.0, cpus=3.0)
    add(store, 1, 2, 1.0, gpus=0.0, cpus=1.0, outcome="crashed")  # what was lost was paid for too
    add(store, 2, 1, 4.0, gpus=0.25, cpus=2.0, gpu_ids="0")  # its cores go with the GPU
    add(store, 3, 1, 1.0, gpus=1.0, cpus=8.0, gpu_ids="1")
    assert hours(store) == (2, 7) == hours(store, None) and hours(store, 99) == (0, 0)
    assert results_text.closing_lines(store, 1) == "device hours of small: 2 of GPUs and 7 of CPU cores"


def test_worst_cases_and_time_that_ran_backwards_cost_nothing(sqlite_store: Store):
    with sqlite_store.begin() as db:
        worst = db.execute(select(job.c.id).where(job.c.kind == "worst")).scalars().first()
    assert worst is not None
    add(sqlite_store, worst, 1, 5.0)
    add(sqlite_store, 1, 1, -5.0, cpus=1.0)  # the clock was set back
    assert hours(sqlite_store) == (0, 0)


def test_attempts_of_before_count_as_the_share_that_their_job_needs(sqlite_store: Store):
    add(sqlite_store, 1, 1, 1.0, gpu_ids="0")
    add(sqlite_store, 2, 1, 1.0, gpu_ids="0")
    add(sqlite_store, 3, 1, 1.0, gpu_ids=None)
    add(sqlite_store, 3, 2, 1.0, gpu_ids="-1")  # which hides all GPUs
    with sqlite_store.begin() as db:
        db.execute(update(job).where(job.c.id == 2).values(gpu_share=0.5))
    assert hours(sqlite_store) == (1.5, 2)


def test_what_runs_counts_up_to_now(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with sqlite_store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1)
        transitions.start(db, claimed, "one", "here", 1, "", gpus=0.0, cpus=2.0)
    now[0] += HOUR / 2
    assert hours(sqlite_store) == (0, 1)
    with sqlite_store.begin() as db:  # what its driver lost without a word has no end, and is not counted
        db.execute(update(job).where(job.c.id == claimed.id).values(state="queued"))
    assert hours(sqlite_store) == (0, 0)


def test_what_a_dead_driver_left_counts_up_to_its_last_sign(store: Store, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with store.begin() as db:
        drivers.register(db, "dead", "here", 1, 0.0, "0", "gone")
        (claimed,) = claims.claim(db, "dead", most=1)
        transitions.start(db, claimed, "dead", "here", 1, "", gpus=0.0, cpus=2.0)
        now[0] += HOUR / 2
        drivers.beat(db, "dead")  # and nothing after that
    now[0] += 100 * HOUR
    assert hours(store)[1] == pytest.approx(2 * (0.5 + transitions.LEASE_SECONDS / HOUR))
    with store.begin() as db:
        assert drivers.reclaim(db, ["dead"]) == 1
        ended = db.execute(select(attempt.c.ended_at)).scalar_one()
    assert (ended, hours(store)) == (1000 + HOUR / 2, (0, 1))


def test_an_attempt_that_began_after_the_last_sign_takes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with store.begin() as db:
        drivers.register(db, "dead", "here", 1, 0.0, "0", "gone")
        now[0] += 5
        (claimed,) = claims.claim(db, "dead", most=1)
        transitions.start(db, claimed, "dead", "here", 1, "", gpus=0.0, cpus=2.0)
        now[0] += 100 * HOUR
        assert drivers.reclaim(db, ["dead"]) == 1
        assert db.execute(select(attempt.c.ended_at)).scalar_one() == 1005.0


def test_words_have_three_digits():
    assert DeviceHours(0.0, 0.0).words == ""
    assert DeviceHours(1.23456, 0.0).words == "1.23 of GPUs"
    assert DeviceHours(0.0, 0.0012345).words == "0.00123 of CPU cores"
