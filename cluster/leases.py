"""Who holds which jobs: leases prolonged, those of dead drivers taken back."""

import platform
import time

import psutil
from sqlalchemy import Connection, select

from cluster.driver import Driver
from jobs import queue
from jobs.schema import driver

RENEW_SECONDS = 20.0


def keep_leases(db: Connection, at_work: Driver) -> bool:
    """Now and then: prolong this driver's leases, and take back those that ran out or whose driver is dead.

    Returns whether it was time to.
    """
    if time.monotonic() - at_work.renewed_at <= RENEW_SECONDS:
        return False
    at_work.beat_at = queue.beat(db, at_work.id)
    queue.renew(db, at_work.id)
    queue.reclaim(db, dead_drivers(db))
    at_work.renewed_at = time.monotonic()
    return True


def dead_drivers(db: Connection) -> list[str]:
    """Drivers of this machine whose process is gone: their leases need not run out first."""
    rows = db.execute(select(driver).where(driver.c.stopped_at.is_(None) & (driver.c.host == platform.node()))).all()
    return [row.id for row in rows if not alive(row.pid, row.process_started_at)]


def alive(pid: int, started_at: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started_at) < 1
    except psutil.Error:
        return False
