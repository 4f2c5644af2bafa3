"""The queue's promises: each state change once, only by whoever holds the job, and nothing lost."""

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from robustq.jobs.queue import claims, transitions, user_actions
from robustq.jobs.queue.status import counts
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.artifacts import Artifact
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, event, example_blob, job, result
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.submission.submit import record
from tests.helpers.small_store import filled, resolved, small_plan

ROW = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}
ANY = sa.true()


def claim(store, driver="one", most=1, what: Any = ANY) -> list[Claimed]:
    with store.begin() as db:
        return claims.claim(db, driver, most=most, what=what)


def started(store, driver="one") -> Claimed:
    (claimed,) = claim(store, driver)
    with store.begin() as db:
        assert transitions.start(db, claimed, driver, "node", 1, "")
    return claimed


def finished(store, driver="one", artifacts=()) -> Claimed:
    claimed = started(store, driver)
    with store.begin() as db:
        assert transitions.finish(db, claimed, ROW, (b"x", 1), artifacts)
    return claimed


def states(store) -> dict[str, int]:
    with store.begin() as db:
        return {state: n for state, n in counts(db).items() if n}


def rows(store, table) -> list:
    with store.begin() as db:
        return list(db.execute(select(table)).all())


def test_trainings_are_ready_and_the_rest_waits(store):
    assert states(store) == {"queued": 2, "blocked": 6}


def test_submitting_again_queues_nothing_and_two_sweeps_may_share_jobs(store):
    with store.begin() as db:
        assert record(db, resolved(), small_plan()).new == 0
        again = record(db, resolved("other"), small_plan())
    assert (again.jobs, again.new) == (8, 0)
    assert states(store) == {"queued": 2, "blocked": 6}


@pytest.mark.slow
def test_all_jobs_in_turn(store):
    while claimed := claim(store):
        with store.begin() as db:
            assert transitions.start(db, claimed[0], "one", "node", 1, "")
            weights = [Artifact("weights", "e" * 64, 3)] if claimed[0].kind == "train" else []
            assert transitions.finish(db, claimed[0], ROW, (b"x", 1), weights)
    assert states(store) == {"done": 8}
    assert len(rows(store, result)) == len(rows(store, example_blob)) == len(rows(store, attempt)) == 8


def test_an_evaluation_is_handed_the_weights_of_its_training(store):
    trained = finished(store, artifacts=[Artifact("weights", "e" * 64, 3)])
    with store.begin() as db:
        (evaluation, _) = claims.claim(db, "one", most=8, what=job.c.kind == "eval")
    assert evaluation.weights == {trained.key: "e" * 64}


def test_a_bundle_shares_its_model(store):
    finished(store)
    finished(store)
    claimed = claim(store, most=8, what=job.c.kind == "eval")
    assert len(claimed) == 2
    assert len({c.spec["train"] for c in claimed}) == 1


@pytest.mark.slow
def test_a_claim_raises_the_fence_and_a_late_result_changes_nothing(store):
    late = started(store)
    with store.begin() as db:
        assert transitions.release(db, late, "lost")
    again = started(store, "two")
    assert (again.id, again.fence) == (late.id, late.fence + 1)
    with store.begin() as db:
        assert not transitions.finish(db, late, ROW)
        assert not transitions.start(db, late, "one", "node", 1, "")
        assert not transitions.progress(db, late, 1, 2, "")
        assert not transitions.fail(db, late, "E", "m", "t")
        assert not transitions.crash(db, late, "r")
        assert transitions.finish(db, again, ROW | {"robust_accuracy": 0.25})
        assert not transitions.finish(db, again, ROW)
    (row,) = rows(store, result)
    assert (row.robust_accuracy, row.fence) == (0.25, again.fence)
    assert {e.kind for e in rows(store, event)} >= {"stale-result", "stale-start", "stale-failure"}


def test_a_failure_is_final_and_takes_its_dependents_along(store):
    claimed = started(store)
    with store.begin() as db:
        assert transitions.fail(db, claimed, "ValueError", "no", "trace")
    assert states(store) == {"queued": 1, "blocked": 3, "failed": 4}
    with store.begin() as db:
        assert user_actions.retry(db, [claimed.id]) == 4  # with the three that failed for its sake
        assert user_actions.retry(db, jobs_of(None)) == 0
    assert states(store) == {"queued": 2, "blocked": 6}


def test_a_job_whose_worker_dies_waits_ever_longer_runs_alone_and_ends(store, monkeypatch):
    monkeypatch.setattr(transitions, "BACKOFF_SECONDS", 0.0)
    first = started(store)
    for _ in range(4):
        with store.begin() as db:
            assert transitions.crash(db, first, "killed")
        (first,) = claim(store)
        with store.begin() as db:
            assert transitions.start(db, first, "one", "node", 1, "")
    with store.begin() as db:
        assert transitions.crash(db, first, "killed")
        row = db.execute(select(job).where(job.c.id == first.id)).one()
    assert (row.state, row.crashes, row.attempt, row.error_class) == ("failed", 5, 5, "WorkerDied")
    assert [a.outcome for a in rows(store, attempt)] == ["crashed"] * 4 + ["failed"]


def test_back_off(store):
    claimed = started(store)
    with store.begin() as db:
        transitions.crash(db, claimed, "killed")
        row = db.execute(select(job).where(job.c.id == claimed.id)).one()
    assert 4 < row.not_before - time.time() <= transitions.BACKOFF_SECONDS
    assert claim(store)[0].id != claimed.id


def test_a_suspect_is_claimed_alone(store, monkeypatch):
    monkeypatch.setattr(transitions, "BACKOFF_SECONDS", 0.0)
    finished(store)
    finished(store)
    suspect = claim(store, most=1, what=job.c.kind == "eval")[0]
    with store.begin() as db:
        transitions.start(db, suspect, "one", "node", 1, "")
        transitions.crash(db, suspect, "killed")
    assert [c.id for c in claim(store, most=8, what=job.c.kind == "eval")] == [suspect.id]


def test_cancel(store):
    running = started(store)
    with store.begin() as db:
        assert user_actions.cancel(db, jobs_of(None)) == 8
    assert states(store) == {"running": 1, "cancelled": 7}
    with store.begin() as db:
        assert transitions.confirm_cancelled(db, running)
        assert not transitions.finish(db, running, ROW)
    assert states(store) == {"cancelled": 8}
    with store.begin() as db:
        assert user_actions.retry(db, jobs_of(None)) == 8
    assert states(store) == {"queued": 2, "blocked": 6}


def test_new_dependents_of_a_failed_job_have_failed_too(store):
    claimed = started(store)
    with store.begin() as db:
        transitions.fail(db, claimed, "E", "m", "t")
        # Forget all but the trainings, and submit again under another name.
        for table in ("sweep_job", "job_dep", "event", "attempt"):
            db.execute(sa.text(f"DELETE FROM {table}"))
        db.execute(sa.delete(job).where(job.c.kind != "train"))
        record(db, resolved("again"), small_plan())
    assert states(store) == {"queued": 1, "blocked": 3, "failed": 4}


@pytest.mark.slow
def test_racing_claimers_share_the_jobs_without_doubles(store):
    """Four threads with connections of their own: every job is claimed once, and nobody meets a locked database."""
    with store.begin() as db:
        db.execute(sa.update(job).values(state="queued", kind="train", bundle_key=job.c.key))
    found: list[int] = []
    errors: list[BaseException] = []

    def work() -> None:
        mine = open_store(store.url, write=True)
        try:
            while claimed := claim(mine):
                found.append(claimed[0].id)
        except BaseException as error:
            errors.append(error)
        mine.engine.dispose()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(found) == list(range(1, 9))


@pytest.mark.postgres
def test_the_last_two_that_a_job_needs_end_at_the_same_moment(postgres):
    """Each in a transaction that does not see the other's: the job that needs both is queued all the same."""
    with filled(postgres) as store:
        finished(store)
        with store.begin() as db:
            first, second = claims.claim(db, "one", most=2, what=job.c.kind == "eval")
            for claimed in (first, second):
                assert transitions.start(db, claimed, "one", "node", 1, "")
        other = open_store(store.url, write=True)

        def finish_second() -> None:
            with other.begin() as db:
                assert transitions.finish(db, second, ROW, (b"x", 1))

        thread = threading.Thread(target=finish_second)
        with store.begin() as db:
            assert transitions.finish(db, first, ROW, (b"x", 1))
            thread.start()
            time.sleep(0.5)  # it waits for the job that both unblock
            assert thread.is_alive()
        thread.join()
        with store.begin() as db:
            worst = select(job.c.state).where((job.c.kind == "worst") & (job.c.arch == "lenet5"))
            assert db.execute(worst).scalars().all() == ["queued"]
        other.engine.dispose()


@pytest.mark.postgres
def test_a_deadlock_is_begun_again(postgres):
    with filled(postgres) as store:
        gate = threading.Barrier(2, timeout=20)
        turns = []

        def change(ids: tuple[int, int]) -> None:
            def both(db) -> None:
                turns.append(ids)
                db.execute(sa.update(job).where(job.c.id == ids[0]).values(seed=ids[0]))
                if len(turns) <= 2:
                    gate.wait()
                db.execute(sa.update(job).where(job.c.id == ids[1]).values(seed=ids[0]))

            store.write(both)

        threads = [threading.Thread(target=change, args=(ids,)) for ids in ((1, 2), (2, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(turns) > 2  # one of them was broken off and came again, perhaps more than once
