"""Claims: which jobs a driver gets."""

from sqlalchemy import select, update

from robustq.jobs.queue import claims, transitions
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import audit, job, sweep
from robustq.jobs.submission.submit import record
from tests.helpers.small_store import resolved, small_plan

ROW = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}


def trained(store: Store) -> None:
    """Both trainings are done, so that all four evaluations are queued."""
    with store.begin() as db:
        for claimed in [c for _ in range(2) for c in claims.claim(db, "one", most=1)]:
            assert transitions.start(db, claimed, "one", "here", 1, "")
            assert transitions.finish(db, claimed, ROW)


def test_a_claim_stays_within_its_sweep(store: Store):
    """The second sweep wants the jobs of the second model alone, which come after those of the first."""
    with store.begin() as db:
        record(db, resolved("second"), small_plan()[4:])
        (sweep_id,) = db.execute(select(sweep.c.id).where(sweep.c.name == "second")).scalars()
        (claimed,) = claims.claim(db, "one", most=8, sweep_id=sweep_id)
        assert (claimed.kind, claimed.spec["model"]["arch"]) == ("train", "convnet3")
        assert claims.claim(db, "one", most=8, sweep_id=sweep_id) == []
        (other,) = claims.claim(db, "one", most=8)
        assert other.spec["model"]["arch"] == "lenet5"
        assert claimed.name == f"rq:train:{claimed.id}"  # what Ray's dashboard calls it


def test_a_claim_ends_with_the_job_that_reaches_its_budget(store: Store):
    trained(store)
    with store.begin() as db:
        db.execute(update(job).where(job.c.kind == "eval").values(cost=3.0))
        assert len(claims.claim(db, "one", most=8, budget=3.0)) == 1
        assert len(claims.claim(db, "one", most=8, budget=0.0)) == 1  # what is left of that model; never nothing
        assert len(claims.claim(db, "one", most=8, budget=3.1)) == 2


def test_only_who_holds_a_cancelled_job_confirms_that_it_stopped(store: Store):
    with store.begin() as db:
        (late,) = claims.claim(db, "one", most=1)
        assert transitions.release(db, late, "lost")
        assert not transitions.confirm_cancelled(db, late)
        states = select(job.c.state).where((job.c.id == late.id) | (job.c.kind == "worst"))
        assert "cancelled" not in db.execute(states).scalars().all()


def test_an_audit_is_found_by_its_model_and_data_where_these_are_known(store: Store):
    """Jobs of stores from before audits have no subject: nothing is noted of them."""
    trained(store)
    told = {"extra": {"audit": {"adaptive_robust_accuracy": 0.25, "verdict": "fail"}}}
    with store.begin() as db:
        known, unknown = claims.claim(db, "one", most=2)
        db.execute(update(job).where(job.c.id == known.id).values(subject="s" * 64))
        db.execute(update(job).where(job.c.id == unknown.id).values(subject=None))
        for claimed in (known, unknown):
            assert transitions.finish(db, claimed, ROW | told)
        (row,) = db.execute(select(audit)).all()
    assert row._mapping == {
        "job_id": known.id,
        "subject": "s" * 64,
        "norm": "Linf",
        "eps": 0.1,
        "robust_accuracy": 0.25,
        "verdict": "fail",
    }
