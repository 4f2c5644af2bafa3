"""Claims: jobs taken from the queue under a lease, so that no two drivers ever hold the same one."""

import math
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustq.jobs.queue.dependencies import weights_of
from robustq.jobs.queue.transitions import LEASE_SECONDS, LONGEST_PAUSE_SECONDS, Claimed
from robustq.jobs.store.schema import job, sweep, sweep_job

# What workers run, and what a driver settles itself from what the store holds.
RUNS = job.c.kind.in_(("train", "eval", "shard", "probe")) & (job.c.parts == 0)
SETTLES = (job.c.kind == "worst") | (job.c.parts > 0)
WHOLE = 1 - 1e-9  # of a GPU, but for rounding


def claim(
    db: Connection,
    driver_id: str,
    *,
    most: int,
    what: Any = RUNS,
    sweep_id: int | None = None,
    budget: float = math.inf,
    gpu_share: float = math.inf,
) -> list[Claimed]:
    """Lease the next job and up to `most` - 1 others that share its model and data. Empty where nothing is ready.

    what: a condition on the jobs.  sweep_id: stay within this sweep.  budget: no more jobs once these together are
    estimated to cost so much.  gpu_share: only jobs that need no more of a GPU; those of which nothing is known need a
    whole one.
    A job that crashed a worker before is claimed alone; the radii of a curve, which are one search, are claimed
    together whatever `most` and `budget` say. Drivers that claim at once get different jobs, and none waits.
    """
    now = time.time()
    # No pause is longer: one that seems so was noted before the clock was set back, or by one that is ahead.
    waits = (job.c.not_before > now) & (job.c.not_before <= now + LONGEST_PAUSE_SECONDS)
    ready = what & (job.c.state == "queued") & ~waits & not_paused(db)
    if sweep_id is not None:
        ready &= in_sweep(sweep_job.c.sweep_id == sweep_id)
    if gpu_share < WHOLE:
        ready &= job.c.gpu_share <= gpu_share + 1e-9
    first = next(iter(look(db, ready, 1)), None)
    if first is None:
        return []
    radii = len(first["spec"].get("attack", {}).get("curve", ()))
    most, rows = max(most, radii), [first]
    if most > 1 and first["crashes"] == 0:
        same = (job.c.bundle_key == first["bundle_key"]) & job.c.gpu_share.is_not_distinct_from(first["gpu_share"])
        rows += look(db, ready & same & (job.c.crashes == 0) & (job.c.id != first["id"]), most - 1)
    chosen, spent = [], 0.0
    for row in rows:
        if chosen and spent >= budget and not radii:
            break
        spent += row["cost"]
        chosen.append(row)
    lease(db, [row["id"] for row in chosen], driver_id, now + LEASE_SECONDS)
    weights = weights_of(db, [row["id"] for row in chosen])
    return [as_claimed(row, row["fence"] + 1, weights.get(row["id"], {})) for row in chosen]


def look(db: Connection, ready: Any, most: int) -> Sequence[Any]:
    """The next jobs; on a server locked until the transaction ends, and those that others have locked left out."""
    query = select(job).where(ready).order_by(job.c.priority.desc(), job.c.id).limit(most)
    return db.execute(query.with_for_update(skip_locked=True)).mappings().all()


def lease(db: Connection, ids: list[int], driver_id: str, until: float) -> None:
    """All of them, which this transaction has locked."""
    mine = job.c.id.in_(ids) & (job.c.state == "queued")
    values = {"state": "leased", "fence": job.c.fence + 1, "lease_owner": driver_id, "lease_expires_at": until}
    changed = db.execute(update(job).where(mine).values(**values)).rowcount
    assert changed == len(ids), f"{changed} of {len(ids)} jobs leased: somebody else holds the rest"


def as_claimed(row: Any, fence: int, weights: dict[str, str]) -> Claimed:
    names = ("id", "key", "kind", "spec", "cost", "gpu_share", "timeout_seconds")
    return Claimed(**{name: row[name] for name in names}, fence=fence, weights=weights)


def in_sweep(condition: Any) -> Any:
    """Jobs that are in a sweep like that; looked up job by job, since the next job is mostly one of the first."""
    member = (sweep_job.c.job_id == job.c.id) & condition
    return select(sa.literal(1)).where(member).correlate(job).exists()


def not_paused(db: Connection) -> Any:
    """Jobs that some sweep wants now; all, where none is paused, as mostly."""
    paused = list(db.execute(select(sweep.c.id).where(sweep.c.paused)).scalars())
    return in_sweep(sweep_job.c.sweep_id.not_in(paused)) if paused else sa.true()
