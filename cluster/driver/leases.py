"""The leases by which drivers hold jobs: prolonged while a driver lives, taken back from dead ones.

Clocks are set, and those of two machines differ, so none takes a job from a driver by itself. A driver is dead if its
process is known to have ended, or if this one has watched it give no sign of life.
"""

import time

from sqlalchemy import Connection

from robustq.cluster.driver.state import Driver
from robustq.cluster.process_identity import is_gone
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.status import ended_drivers

RENEW_SECONDS = 20.0
MISSED = 3  # renewals without a sign of life, after which the clock is believed that a lease ran out


def keep_leases(db: Connection, at_work: Driver) -> bool:
    """Now and then: prolong this driver's leases, and take back those of drivers that are dead or silent.

    Returns whether it was time to.
    """
    if time.monotonic() - at_work.renewed_at <= RENEW_SECONDS:
        return False
    at_work.beat_at = drivers.beat(db, at_work.id)
    drivers.renew(db, at_work.id)
    missed = watch(db, at_work)
    silent = [
        id_ for id_, n in missed.items() if n * RENEW_SECONDS >= transitions.LEASE_SECONDS
    ]  # whatever the clock says
    heard = [id_ for id_, n in missed.items() if n < MISSED]
    drivers.reclaim(db, dead_drivers(db, at_work.id) + silent, heard=[at_work.id, *heard])
    at_work.renewed_at = time.monotonic()
    return True


def watch(db: Connection, at_work: Driver) -> dict[str, int]:
    """How often in a row each other driver that holds jobs was found without a new sign of life.

    Looks are counted, not seconds: this driver may have slept, and the others with it.
    """
    found, before = drivers.holders(db), at_work.watched
    at_work.watched = {
        id_: (beat, before[id_][1] + 1 if id_ in before and before[id_][0] == beat else 0)
        for id_, beat in found.items()
        if id_ != at_work.id
    }
    return {id_: n for id_, (_, n) in at_work.watched.items()}


def dead_drivers(db: Connection, own: str | None = None) -> list[str]:
    """Drivers whose process has surely ended: their leases need not run out first. own: this driver, which lives."""
    return [id_ for id_ in ended_drivers(db, is_gone) if id_ != own]
