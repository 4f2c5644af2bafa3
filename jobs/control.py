"""What people ask of the queue: cancel, retry, pause and resume a sweep, put it before others."""

import time
from typing import Any

from sqlalchemy import Connection, select, update

from jobs.errors import SpecError
from jobs.graph import dependents, unblock
from jobs.queue import LIVE, STEPS, UNFINISHED
from jobs.schema import job, job_dep, sweep, sweep_job

WAITING = ("blocked", "queued")


def with_shards(ids: Any) -> Any:
    """The jobs, and the shards of those that were split."""
    shards = (
        select(job_dep.c.needs_id)
        .join(job, job.c.id == job_dep.c.job_id)
        .where((job.c.parts > 0) & job_dep.c.job_id.in_(ids))
    )
    shard = job.alias("shard")
    return select(shard.c.id).where(shard.c.id.in_(ids) | (shard.c.id.in_(shards) & (shard.c.kind == "shard")))


def cancel(db: Connection, ids: Any) -> int:
    """Cancel jobs: at once where they wait, by their driver where they run; what needs them is cancelled too.

    Returns how many of them were not finished.
    """
    chosen = job.c.id.in_(with_shards(ids))
    values: dict[str, Any] = {"state": "cancelled", "finished_at": time.time()}
    text = {"error_class": "Cancelled", "error_message": "cancelled on request"}
    sake = {"error_class": "UpstreamFailed", "error_message": "a job that it needs was cancelled"}
    doomed = dependents(select(job.c.id).where(chosen & job.c.state.in_(WAITING)))
    waits = job.c.state.in_(WAITING)
    db.execute(update(job).where(job.c.id.in_(doomed) & waits & ~chosen).values(**values, **sake))
    waiting = db.execute(update(job).where(chosen & waits).values(**values, **text)).rowcount
    running = db.execute(update(job).where(chosen & job.c.state.in_(LIVE)).values(cancel_requested=True)).rowcount
    return waiting + running


def retry(db: Connection, ids: Any) -> int:
    """Put failed and cancelled jobs back, and those that ended only for their sake. Returns how many."""
    ended = job.c.state.in_(("failed", "cancelled"))
    chosen = select(job.c.id).where(job.c.id.in_(with_shards(ids)) & ended)
    sake = select(job.c.id).where(job.c.id.in_(dependents(chosen)) & (job.c.error_class == "UpstreamFailed"))
    found = sorted({*db.execute(chosen).scalars(), *db.execute(sake).scalars()})
    again = {"crashes": 0, "not_before": 0.0, "cancel_requested": False, "finished_at": None}
    clear = {"state": "blocked", "error_class": None, "error_message": None}
    for start in range(0, len(found), 500):  # databases bound the number of values in a statement
        some = found[start : start + 500]
        db.execute(update(job).where(job.c.id.in_(some)).values(**again, **clear))
        unblock(db, some)
    return len(found)


def pause(db: Connection, sweep_id: int, *, paused: bool) -> int:
    """Start no more jobs of this sweep but those that another sweep wants too, or go on with it.

    What runs goes on to its end. Returns how many of its jobs are not finished.
    """
    db.execute(update(sweep).where(sweep.c.id == sweep_id).values(paused=paused))
    members = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
    left = select(job.c.id).where(job.c.id.in_(members) & job.c.state.in_(UNFINISHED))
    return len(db.execute(left).all())


def prioritise(db: Connection, ids: Any, priority: int) -> int:
    """Put the unfinished jobs before all of lower priority; new jobs have 0. Returns how many."""
    if not -1000 <= priority <= 1000:
        raise SpecError(f"expected a priority between -1000 and 1000, got {priority}")
    chosen = job.c.id.in_(with_shards(ids)) & job.c.state.in_(UNFINISHED)
    first = update(job).where(chosen & (job.c.kind == "train")).values(priority=STEPS * priority + 1)
    rest = update(job).where(chosen & (job.c.kind != "train")).values(priority=STEPS * priority)
    return db.execute(first).rowcount + db.execute(rest).rowcount
