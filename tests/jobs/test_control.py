"""What people ask of the queue takes hold of the right jobs, and of no others."""

import pytest
from sqlalchemy import select

from jobs import claims, control, queue
from jobs.engine import Store
from jobs.errors import SpecError
from jobs.schema import job
from jobs.states import counts, jobs_of
from jobs.submit import record
from tests.jobs.conftest import resolved, small_plan


def states(store: Store) -> dict[str, int]:
    with store.begin() as db:
        return {state: n for state, n in counts(db).items() if n}


def test_what_needs_a_cancelled_job_does_not_wait_for_it(store):
    with store.begin() as db:
        first = db.execute(select(job.c.id).where(job.c.kind == "train").order_by(job.c.id)).scalars().first()
        assert control.cancel(db, [first]) == 1
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}
    with store.begin() as db:
        assert control.retry(db, [first]) == 4
    assert states(store) == {"queued": 2, "blocked": 6}


def test_a_running_job_is_cancelled_by_its_driver(store):
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1)
        assert control.cancel(db, [claimed.id]) == 1
        assert counts(db)["leased"] == 1
        assert queue.confirm_cancelled(db, claimed)
    assert states(store)["cancelled"] == 4


def test_nothing_of_a_paused_sweep_begins_but_what_another_wants(store):
    with store.begin() as db:
        assert control.pause(db, 1, paused=True) == 8
        assert claims.claim(db, "one", most=1) == []
        other = record(db, resolved("other"), small_plan()[:4]).sweep_id
        wanted = set(db.execute(jobs_of(other)).scalars())
        (claimed,) = claims.claim(db, "one", most=1)
        assert claimed.id in wanted
        assert claims.claim(db, "one", most=1) == []
        assert control.pause(db, 1, paused=False) == 8
        assert len(claims.claim(db, "one", most=1)) == 1


def test_higher_priority_goes_first_and_a_training_before_its_sweeps_evaluations(store):
    with store.begin() as db:
        last = db.execute(select(job.c.id).where(job.c.kind == "train").order_by(job.c.id.desc())).scalars().first()
        assert control.prioritise(db, [last], 3) == 1
        (claimed,) = claims.claim(db, "one", most=1)
        assert claimed.id == last
        assert control.prioritise(db, jobs_of(1), -2) == 8
        found = set(db.execute(select(job.c.kind, job.c.priority)).all())
        assert found == {("train", -3), ("eval", -4), ("worst", -4)}
        with pytest.raises(SpecError, match="expected a priority between -1000 and 1000, got 5000"):
            control.prioritise(db, [last], 5000)


def test_jobs_go_to_slots_that_are_large_enough(store):
    with store.begin() as db:
        assert claims.claim(db, "one", most=8, gpu_share=0.5) == []  # nothing is known: they need a whole GPU
        (first,) = claims.claim(db, "one", most=8, gpu_share=1.0)
        assert queue.start(db, first, "one", "here", 1, "0")
        assert queue.release(db, first, "out of memory", gpu_share=0.25)
        assert claims.claim(db, "one", most=8, gpu_share=0.125) == []
        (again,) = claims.claim(db, "one", most=8, gpu_share=0.5)
        assert (again.id, again.gpu_share) == (first.id, 0.25)


def test_what_a_job_needed_is_known_of_its_mates(store):
    with store.begin() as db:
        (train,) = claims.claim(db, "one", most=1)
        assert queue.start(db, train, "one", "here", 1, "0")
        row = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}
        assert queue.finish(db, train, row)
        (evaluation,) = claims.claim(db, "one", most=1, what=job.c.kind == "eval")
        queue.learn_share(db, evaluation, 0.125)
        shares = db.execute(select(job.c.gpu_share).where(job.c.kind == "eval").order_by(job.c.id)).scalars().all()
    assert shares == [None, 0.125, None, None]  # its mate; it itself is leased, the others are another model's
