"""Drivers as the store knows them: signs of life, leases that are prolonged, and jobs that are taken back."""

import time

import sqlalchemy as sa
from sqlalchemy import select, update

from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import attempt, job
from tests.helpers.small_store import ROW, states


def started(store: Store, driver: str = "one") -> Claimed:
    with store.begin() as db:
        (claimed,) = claims.claim(db, driver, most=1)
    with store.begin() as db:
        assert transitions.start(db, claimed, driver, "node", 1, "")
    return claimed


def test_drivers_that_hold_jobs_are_known_by_their_last_sign_of_life(store: Store):
    with store.begin() as db:
        assert drivers.holders(db) == {}
        claims.claim(db, "one", most=1)
        before = drivers.heartbeat(db, "one")
        after = drivers.beat(db, "one")
        assert before is not None and after >= before
        assert drivers.holders(db) == {"one": after} == {"one": drivers.heartbeat(db, "one")}
        assert drivers.heartbeat(db, "nobody") is None


def test_a_driver_prolongs_its_own_leases_alone(store: Store):
    with store.begin() as db:
        (mine,), (theirs,) = claims.claim(db, "one", most=1), claims.claim(db, "two", most=1)
        db.execute(update(job).values(lease_expires_at=5.0))
        drivers.renew(db, "one")
        ends = dict(db.execute(select(job.c.id, job.c.lease_expires_at)).all())
    assert ends[mine.id] > 5.0 == ends[theirs.id]


def test_dead_drivers_and_run_out_leases_give_their_jobs_back(store: Store):
    started(store, "one")
    started(store, "two")
    with store.begin() as db:
        assert drivers.reclaim(db, ["one"]) == 1
        db.execute(sa.update(job).where(job.c.lease_owner == "two").values(lease_expires_at=time.time() - 1))
        drivers.renew(db, "two")
        assert drivers.reclaim(db, []) == 0
        db.execute(sa.update(job).where(job.c.lease_owner == "two").values(lease_expires_at=time.time() - 1))
        assert drivers.reclaim(db, []) == 1
    assert states(store) == {"queued": 2, "blocked": 6}
    with store.begin() as db:
        assert db.execute(select(attempt.c.outcome)).scalars().all() == ["lost", "lost"]


def test_a_lease_that_ran_out_stands_where_its_driver_was_heard_of(store: Store):
    """The clock may have been set: it is the driver that counts, unless that is known to be dead."""
    held = [started(store, "one"), started(store, "two")]
    with store.begin() as db:
        assert drivers.holders(db).keys() == {"one", "two"}
        db.execute(sa.update(job).values(lease_expires_at=time.time() - 3600))
        assert drivers.reclaim(db, [], heard=["one", "two"]) == 0
        assert drivers.reclaim(db, ["two"], heard=["one", "two"]) == 1
        assert drivers.holders(db).keys() == {"one"}
        assert transitions.finish(db, held[0], ROW) and not transitions.finish(db, held[1], ROW)
        assert drivers.holders(db) == {}


def test_stopping_a_driver_costs_no_attempt(store: Store):
    claimed = started(store)
    with store.begin() as db:
        drivers.stop(db, "one")
        row = db.execute(select(job).where(job.c.id == claimed.id)).one()
    assert (row.state, row.crashes) == ("queued", 0)
