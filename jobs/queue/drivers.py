"""Drivers as the store knows them: their signs of life, and the jobs that they hold, prolonged or taken back."""

import time
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustq.jobs.queue import transitions
from robustq.jobs.queue.transitions import LIVE, Claimed, note, release
from robustq.jobs.store.schema import driver, job


def register(
    db: Connection,
    driver_id: str,
    host: str,
    pid: int,
    process_started_at: float,
    version: str,
    process: str | None = None,
) -> float:
    """A driver says that it is there; returns what its row has as its last sign of life. process: its identity."""
    now = time.time()
    db.execute(
        sa.insert(driver).values(
            id=driver_id,
            host=host,
            pid=pid,
            process_started_at=process_started_at,
            started_at=now,
            heartbeat_at=now,
            version=version,
            process=process,
        )
    )
    return now


def beat(db: Connection, driver_id: str) -> float:
    """A driver gives a sign of life; returns it."""
    now = time.time()
    db.execute(update(driver).where(driver.c.id == driver_id).values(heartbeat_at=now))
    return now


def heartbeat(db: Connection, driver_id: str) -> float | None:
    """The last sign of life of a driver; None for one that the store does not know."""
    return db.execute(select(driver.c.heartbeat_at).where(driver.c.id == driver_id)).scalar()


def holders(db: Connection) -> dict[str, float]:
    """The last sign of life of each driver that holds jobs, by that driver's clock."""
    holds = select(job.c.lease_owner).where(job.c.state.in_(LIVE))
    rows = db.execute(select(driver.c.id, driver.c.heartbeat_at).where(driver.c.id.in_(holds)))
    return {row.id: row.heartbeat_at for row in rows}


def renew(db: Connection, driver_id: str) -> None:
    """Prolong the leases of all the driver's jobs."""
    held = (job.c.lease_owner == driver_id) & job.c.state.in_(LIVE)
    db.execute(update(job).where(held).values(lease_expires_at=time.time() + transitions.LEASE_SECONDS))


def reclaim(db: Connection, dead_drivers: Sequence[str], heard: Iterable[str] = ()) -> int:
    """Take back the jobs of drivers known to be dead and those whose lease ran out. Returns how many.

    Their attempts ended with the last sign of life of their driver: nothing says that it computed any longer.
    heard: drivers that may live, whatever the clock says of their leases: it may have been set.
    """
    ran_out = (job.c.lease_expires_at < time.time()) & job.c.lease_owner.not_in(list(heard))
    lost = job.c.state.in_(LIVE) & (job.c.lease_owner.in_(dead_drivers) | ran_out)
    rows = db.execute(select(job).where(lost)).mappings().all()
    beats = {owner: heartbeat(db, owner) for owner in {row["lease_owner"] for row in rows}}
    for row in rows:
        claimed = Claimed(row["id"], row["key"], row["fence"], row["kind"], row["spec"], {})
        release(db, claimed, "lost", at=beats[row["lease_owner"]])
        note(db, "reclaimed", row["id"], row["fence"], from_driver=row["lease_owner"])
    return len(rows)


def stop(db: Connection, driver_id: str) -> None:
    """The driver ends: its jobs go back to the queue."""
    held = db.execute(select(job).where((job.c.lease_owner == driver_id) & job.c.state.in_(LIVE))).mappings().all()
    for row in held:
        release(db, Claimed(row["id"], row["key"], row["fence"], row["kind"], row["spec"], {}), "interrupted")
    db.execute(update(driver).where(driver.c.id == driver_id).values(stopped_at=time.time()))
