"""Status: counts of what is left and of what may run side by side, over the store or a sweep."""

import pytest
from sqlalchemy import select, update

from robustq.jobs.errors import SpecError
from robustq.jobs.queue import claims, status, user_actions
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job, sweep
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.submission.submit import record
from tests.helpers.small_store import resolved, small_plan


@pytest.fixture
def second(store: Store) -> int:
    """Number of a second sweep, of the second model's jobs but its worst case."""
    with store.begin() as db:
        record(db, resolved("second"), small_plan()[4:7])
        return db.execute(select(sweep.c.id).where(sweep.c.name == "second")).scalar_one()


def test_what_is_left_is_told_of_a_sweep_and_of_all(store: Store, second: int):
    with store.begin() as db:
        assert status.any_unfinished(db) and status.any_unfinished(db, second)
        user_actions.cancel(db, jobs_of(second))
        assert status.any_unfinished(db) and not status.any_unfinished(db, second)
        user_actions.cancel(db, jobs_of(None))
        assert not status.any_unfinished(db)


def test_as_many_jobs_run_side_by_side_as_there_are_of_the_larger_kind(store: Store, second: int):
    """Two trainings, then four evaluations; of the second sweep one and two."""
    with store.begin() as db:
        assert (status.widest(db), status.widest(db, second), status.widest(db, 99)) == (4, 2, 1)


def test_the_smallest_known_share_of_a_gpu_is_of_queued_jobs(store: Store):
    with store.begin() as db:
        assert status.smallest_share(db) is None
        db.execute(update(job).where(job.c.kind == "eval").values(gpu_share=0.125))  # they are blocked
        assert status.smallest_share(db) is None
        db.execute(update(job).where(job.c.kind == "train").values(gpu_share=0.5))
        assert status.smallest_share(db) == 0.5


def test_sweeps_are_told_with_their_jobs_the_latest_first(store: Store, second: int):
    with store.begin() as db:
        claims.claim(db, "one", most=1, sweep_id=second)
        found = status.sweeps(db)
    none = dict.fromkeys(("running", "done", "failed", "cancelled"), 0)
    told = [{name: value for name, value in entry.items() if name != "created_at"} for entry in found]
    assert told == [
        {"sweep": "second", "blocked": 2, "queued": 0, "leased": 1} | none,
        {"sweep": "small", "blocked": 6, "queued": 1, "leased": 1} | none,
    ]
    assert found[0]["created_at"] > found[1]["created_at"]


def test_a_job_that_is_not_there_is_named(store: Store):
    with store.begin() as db, pytest.raises(SpecError, match=r"^there is no job 99$"):
        status.job_log(db, 99)
