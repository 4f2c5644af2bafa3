"""What people ask of the queue takes hold of the right jobs, and of no others."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sqlalchemy import event, select

from robustq.jobs.commands import queue_actions
from robustq.jobs.errors import JobsFailed, SpecError
from robustq.jobs.queue import claims, status, transitions, user_actions
from robustq.jobs.queue.status import counts
from robustq.jobs.store.schema import job, sweep
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.submission.submit import record
from tests.helpers.small_store import of, resolved, run, small_plan, states


def test_what_needs_a_cancelled_job_does_not_wait_for_it(store):
    with store.begin() as db:
        first = db.execute(select(job.c.id).where(job.c.kind == "train").order_by(job.c.id)).scalars().first()
        assert user_actions.cancel(db, [first]) == 1
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}
    with store.begin() as db:
        assert user_actions.retry(db, [first]) == 4
    assert states(store) == {"queued": 2, "blocked": 6}


def test_a_running_job_is_cancelled_by_its_driver(store):
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1)
        assert user_actions.cancel(db, [claimed.id]) == 1
        assert counts(db)["leased"] == 1
        assert transitions.confirm_cancelled(db, claimed)
    assert states(store)["cancelled"] == 4


def test_nothing_of_a_paused_sweep_begins_but_what_another_wants(store):
    with store.begin() as db:
        assert user_actions.pause(db, 1, paused=True) == 8
        assert claims.claim(db, "one", most=1) == []
        other = record(db, resolved("other"), small_plan()[:4]).sweep_id
        wanted = set(db.execute(jobs_of(other)).scalars())
        (claimed,) = claims.claim(db, "one", most=1)
        assert claimed.id in wanted
        assert claims.claim(db, "one", most=1) == []
        assert user_actions.pause(db, 1, paused=False) == 8
        assert len(claims.claim(db, "one", most=1)) == 1


def test_higher_priority_goes_first_and_trainings_before_evaluations(store):
    with store.begin() as db:
        last = db.execute(select(job.c.id).where(job.c.kind == "train").order_by(job.c.id.desc())).scalars().first()
        assert user_actions.prioritise(db, [last], 3) == 1
        (claimed,) = claims.claim(db, "one", most=1)
        assert claimed.id == last
        assert user_actions.prioritise(db, jobs_of(1), -2) == 8
        found = set(db.execute(select(job.c.kind, job.c.priority)).all())
        assert found == {("train", -3), ("eval", -4), ("worst", -4)}
        with pytest.raises(SpecError, match="expected a priority between -1000 and 1000, got 5000"):
            user_actions.prioritise(db, [last], 5000)


def test_jobs_go_to_slots_that_are_large_enough(store):
    with store.begin() as db:
        assert claims.claim(db, "one", most=8, gpu_share=0.5) == []  # nothing is known: they need a whole GPU
        (first,) = claims.claim(db, "one", most=8, gpu_share=1.0)
        assert transitions.start(db, first, "one", "here", 1, "0")
        assert transitions.release(db, first, "out of memory", gpu_share=0.25)
        assert claims.claim(db, "one", most=8, gpu_share=0.125) == []
        (again,) = claims.claim(db, "one", most=8, gpu_share=0.5)
        assert (again.id, again.gpu_share) == (first.id, 0.25)


def test_what_a_job_needed_is_known_of_its_mates(store):
    with store.begin() as db:
        (train,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, train, "one", "here", 1, "0")
        row = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}
        assert transitions.finish(db, train, row)
        (evaluation,) = claims.claim(db, "one", most=1, what=job.c.kind == "eval")
        transitions.learn_share(db, evaluation, 0.125)
        shares = db.execute(select(job.c.gpu_share).where(job.c.kind == "eval").order_by(job.c.id)).scalars().all()
    assert shares == [None, 0.125, None, None]  # its mate; it itself is leased, the others are another model's


def test_a_retried_job_brings_back_what_it_needs(store):
    """An evaluation whose training failed: queued alone it would wait for ever, and its driver with it."""
    (train,), evals = of(store, "train"), of(store, "eval")
    run(store, train, fail=True)
    assert states(store) == {"queued": 1, "blocked": 3, "failed": 4}
    with store.begin() as db:
        assert user_actions.retry(db, [evals[0]]) == 4
    assert states(store) == {"queued": 2, "blocked": 6}


def test_what_needs_another_failed_job_too_stays_failed(store):
    """A worst case of two failed evaluations, of which one is tried again."""
    (train,), evals, (worst,) = of(store, "train"), of(store, "eval"), of(store, "worst")
    run(store, train)
    run(store, *evals, fail=True)
    with store.begin() as db:
        assert user_actions.retry(db, [evals[0]]) == 1
        assert db.execute(select(job.c.state).where(job.c.id == worst)).scalar() == "failed"
    run(store, evals[0])
    with store.begin() as db:
        assert user_actions.retry(db, [evals[1]]) == 2  # the worst case with it
    run(store, evals[1])
    with store.begin() as db:
        assert db.execute(select(job.c.state).where(job.c.id == worst)).scalar() == "queued"


def test_a_cancelled_sweep_leaves_others_their_jobs(store):
    with store.begin() as db:
        other = record(db, resolved("other"), small_plan()[:4]).sweep_id
        record(db, replace(resolved(), identity="0" * 64), small_plan())  # another version of the first
    assert queue_actions.cancel(store, [], "small") == (
        "4 jobs cancelled; 4 stay in the queue, which other sweeps want too: other "
        "(robustq cancel with their numbers ends them for all)"
    )
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}
    with store.begin() as db:
        wanted = set(db.execute(jobs_of(other)).scalars())
        open_ = set(db.execute(select(job.c.id).where(job.c.state.in_(transitions.UNFINISHED))).scalars())
    assert open_ == wanted
    assert queue_actions.cancel(store, [], "other") == "4 jobs cancelled"  # the first gave them up
    assert states(store) == {"cancelled": 8}


def test_a_cancelled_sweep_keeps_no_job_of_an_earlier_version(store):
    """A study that was made smaller: what its last version has no more was not asked for by anybody else."""
    with store.begin() as db:
        record(db, replace(resolved(), identity="0" * 64), small_plan()[:4])
    assert queue_actions.cancel(store, [], "small") == "8 jobs cancelled"
    assert states(store) == {"cancelled": 8}


def test_a_drive_of_the_latest_version_says_what_an_earlier_one_has_left(store):
    """A study that was made smaller, whose earlier jobs nobody took out of the queue: the drive ends before them."""
    with store.begin() as db:
        latest = record(db, replace(resolved(), identity="0" * 64), small_plan()[:4]).sweep_id
    said = "sweep small: {} in the queue, of earlier versions of its study; robustq drive without --sweep runs all"
    assert queue_actions.earlier_words(store, latest) == said.format("4 unfinished jobs stay")
    assert queue_actions.earlier_words(store, 1) == queue_actions.earlier_words(store, None) == ""
    theirs = [id_ for kind in ("train", "eval", "worst") for id_ in of(store, kind, "b")]
    run(store, *theirs[:3])
    assert queue_actions.earlier_words(store, latest) == said.format("1 unfinished job stays")


def test_a_pause_holds_every_version_of_a_sweep(store):
    """The earlier one wants the same jobs, and would have had them run."""
    with store.begin() as db:
        latest = record(db, replace(resolved(), identity="0" * 64), small_plan()[:4]).sweep_id
        assert user_actions.pause(db, latest, paused=True) == 8
        assert claims.claim(db, "one", most=1) == []
        assert user_actions.pause(db, latest, paused=False) == 8
        assert len(claims.claim(db, "one", most=1)) == 1


def test_retry_and_priority_take_every_version_of_a_sweep(store):
    """As a cancellation does: what it took out of the queue a retry brings back."""
    with store.begin() as db:
        record(db, replace(resolved(), identity="0" * 64), small_plan()[:4])
    queue_actions.cancel(store, [], "small")
    assert queue_actions.retry(store, [], "small") == 8
    assert states(store) == {"queued": 2, "blocked": 6}
    assert queue_actions.prioritise(store, [], "small", 3) == 8


def test_shared_jobs_are_cancelled_with_the_second_of_their_two_sweeps(store):
    with store.begin() as db:
        record(db, resolved("other"), small_plan())
    for name, other in (("small", "other"), ("other", "")):
        said = queue_actions.cancel(store, [], name)
        assert said.startswith("0 jobs cancelled; 8 stay" if other else "8 jobs cancelled") and other in said
    assert states(store) == {"cancelled": 8}
    assert queue_actions.retry(store, [], "small") == 8
    assert queue_actions.cancel(store, [], "other") == (
        "0 jobs cancelled; 8 stay in the queue, which other sweeps want too: small "
        "(robustq cancel with their numbers ends them for all)"
    )


def test_who_cancels_and_who_wants_a_sweep_take_turns(store):
    """Each writes the sweep before its jobs: on a server one waits there until the other is done with both."""
    order: list[str] = []

    def note(connection, cursor, statement: str, *_) -> None:
        if statement.startswith("UPDATE"):
            order.append(statement.split()[1])

    event.listen(store.engine, "before_cursor_execute", note)
    for ask in (queue_actions.cancel, queue_actions.retry, queue_actions.cancel):
        order.clear()
        ask(store, [], "small")
        assert order[0] == "sweep" and set(order[1:]) == {"job"}


@pytest.mark.parametrize("version", ["the same", "another"])
def test_a_cancelled_sweep_that_is_submitted_again_is_wanted(store, version: str):
    """In all its versions, as it was cancelled in all."""

    def cancelled() -> list[tuple[str, bool]]:
        with store.begin() as db:
            return [tuple(row) for row in db.execute(select(sweep.c.name, sweep.c.cancelled).order_by(sweep.c.id))]

    with store.begin() as db:
        record(db, resolved("other"), small_plan())
    queue_actions.cancel(store, [], "small")
    assert cancelled() == [("small", True), ("other", False)]
    with store.begin() as db:
        record(db, resolved() if version == "the same" else replace(resolved(), identity="0" * 64), small_plan())
    assert not any(is_cancelled for _, is_cancelled in cancelled())
    assert queue_actions.cancel(store, [], "other").startswith("0 jobs cancelled; 8 stay")


def test_a_new_study_wants_what_another_gave_up(store):
    with store.begin() as db:
        assert user_actions.cancel(db, jobs_of(1)) == 8
        found = record(db, resolved("other"), small_plan()[:4])
    assert (found.jobs, found.new) == (4, 0)
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}


def test_a_run_with_cancelled_jobs_did_not_end_well(store):
    worst = of(store, "worst")
    with store.begin() as db:
        user_actions.cancel(db, worst)
    with pytest.raises(JobsFailed, match=r"^1 job was cancelled \(robustq retry --sweep small queues it again\)$"):
        queue_actions.raise_failures(store, 1)


def test_what_runs_has_not_run_for_less_than_no_time(store, monkeypatch):
    """Where the clock was set back after it began."""
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, claimed, "one", "here", 1, "")
        monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: time.time() - 3600))
        assert [row["seconds"] for row in status.running(db)] == [0.0]
