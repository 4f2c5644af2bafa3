"""Requests of people to the queue: cancel, retry, pause and resume a sweep, put it before others."""

import time
from typing import Any

from sqlalchemy import Connection, delete, func, select, update

from robustq.jobs.errors import SpecError
from robustq.jobs.queue.dependencies import ancestors, dependents, unblock
from robustq.jobs.queue.transitions import LIVE, STEPS, UNFINISHED
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import (
    audit,
    check_result,
    example_blob,
    explanation,
    job,
    job_artifact,
    job_dep,
    result,
    sweep,
    sweep_job,
)
from robustq.jobs.store.sweeps import sweep_name

WAITING = ("blocked", "queued")
ENDED = job.c.state.in_(("failed", "cancelled"))


def with_shards(ids: Any) -> Any:
    """The jobs, and the shards of those that were split."""
    shards = (
        select(job_dep.c.needs_id)
        .join(job, job.c.id == job_dep.c.job_id)
        .where((job.c.parts > 0) & job_dep.c.job_id.in_(ids))
    )
    shard = job.alias("shard")
    return select(shard.c.id).where(shard.c.id.in_(ids) | (shard.c.id.in_(shards) & (shard.c.kind == "shard")))


def of_versions(db: Connection, sweep_id: int) -> Any:
    """A selection of the jobs of all versions of a sweep: of all studies of its name."""
    versions = select(sweep.c.id).where(sweep.c.name == sweep_name(db, sweep_id))
    return select(sweep_job.c.job_id).where(sweep_job.c.sweep_id.in_(versions))


def only_of(db: Connection, sweep_id: int) -> tuple[Any, list[str]]:
    """A selection of a sweep's jobs that no other sweep wants, and the names of those that want the rest.

    Versions of a study, which share its name, are one; a sweep that was cancelled wants none.
    """
    wants = (sweep.c.name != sweep_name(db, sweep_id)) & ~sweep.c.cancelled
    others = {id_: other for id_, other in db.execute(select(sweep.c.id, sweep.c.name).where(wants))}
    mine = of_versions(db, sweep_id)
    theirs = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id.in_(others))
    rows = select(sweep_job.c.sweep_id).join(job, job.c.id == sweep_job.c.job_id)
    wanting = rows.where(sweep_job.c.sweep_id.in_(others) & job.c.state.in_(UNFINISHED) & job.c.id.in_(mine)).distinct()
    names = sorted({others[id_] for id_ in db.execute(wanting).scalars()})
    return mine.where(sweep_job.c.job_id.not_in(theirs)), names


def mark_cancelled(db: Connection, name: str) -> None:
    """Note that every version of the sweep of this name is cancelled: it keeps no job in the queue from now on."""
    db.execute(update(sweep).where(sweep.c.name == name).values(cancelled=True))


def mark_wanted(db: Connection, name: str) -> None:
    """Note that a sweep is asked for again. One that was not cancelled is not written, so that nobody waits for it."""
    db.execute(update(sweep).where((sweep.c.name == name) & sweep.c.cancelled).values(cancelled=False))


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


def retry(db: Connection, ids: Any, *, whole: bool = True) -> int:
    """Put failed and cancelled jobs back, and what they need and has ended so; with `whole` also what ended only for
    the sake of these. Returns how many.
    """
    chosen = select(job.c.id).where(job.c.id.in_(with_shards(ids)) & ENDED)
    found = set(db.execute(chosen).scalars())
    # A job that waits for one that has ended would wait for ever.
    found |= set(db.execute(select(job.c.id).where(job.c.id.in_(ancestors(chosen)) & ENDED)).scalars())
    if whole:
        found |= for_their_sake(db, found)
    again = {"crashes": 0, "not_before": 0.0, "cancel_requested": False, "finished_at": None}
    clear = {"state": "blocked", "error_class": None, "error_message": None}
    for some in chunks(sorted(found)):
        db.execute(update(job).where(job.c.id.in_(some)).values(**again, **clear))
    for some in chunks(sorted(found)):
        unblock(db, some)
    return len(found)


def forget(db: Connection, ids: list[int]) -> None:
    """Take back what these jobs recorded, as if they had failed."""
    for some in chunks(ids):
        for table in (result, example_blob, check_result, job_artifact, audit, explanation):
            db.execute(delete(table).where(table.c.job_id.in_(some)))
        values = {"state": "failed", "error_class": "FilesLost", "error_message": "files that it left are lost"}
        db.execute(update(job).where(job.c.id.in_(some)).values(**values))
        waits = job.c.id.in_(dependents(some)) & (job.c.state == "queued")
        db.execute(update(job).where(waits).values(state="blocked"))


def for_their_sake(db: Connection, ids: set[int]) -> set[int]:
    """What ended only because one of these jobs did, but for what needs another that has ended."""
    found: set[int] = set()
    needs: list[tuple[int, int]] = []
    needed = job.alias("needed")
    for some in chunks(sorted(ids)):
        sake = job.c.id.in_(dependents(some)) & (job.c.error_class == "UpstreamFailed")
        found |= set(db.execute(select(job.c.id).where(sake)).scalars())
    for some in chunks(sorted(found)):
        rows = (
            select(job_dep.c.job_id, job_dep.c.needs_id)
            .join(needed, needed.c.id == job_dep.c.needs_id)
            .where(job_dep.c.job_id.in_(some) & needed.c.state.in_(("failed", "cancelled")))
        )
        needs += [(waits, need) for waits, need in db.execute(rows)]
    while stuck := {waits for waits, need in needs if waits in found and need not in found | ids}:
        found -= stuck
    return found


def pause(db: Connection, sweep_id: int, *, paused: bool) -> int:
    """Start no more jobs of this sweep, in all its versions, but those that another sweep wants too, or go on with it.

    What runs goes on to its end. Returns how many of its jobs are not finished.
    """
    db.execute(update(sweep).where(sweep.c.name == sweep_name(db, sweep_id)).values(paused=paused))
    return unfinished(db, of_versions(db, sweep_id))


def unfinished(db: Connection, ids: Any) -> int:
    """How many of these jobs are not finished."""
    left = job.c.id.in_(ids) & job.c.state.in_(UNFINISHED)
    return db.execute(select(func.count()).select_from(job).where(left)).scalar_one()


def left_in_earlier_versions(db: Connection, sweep_id: int) -> int:
    """How many jobs of other versions of a sweep are not finished, and not its own too."""
    mine = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
    others = of_versions(db, sweep_id).where(sweep_job.c.job_id.not_in(mine))
    return unfinished(db, select(job.c.id).where(job.c.id.in_(others) & (job.c.kind != "shard")))


def prioritise(db: Connection, ids: Any, priority: int) -> int:
    """Put the unfinished jobs before all of lower priority; new jobs have 0. Returns how many."""
    if not -1000 <= priority <= 1000:
        raise SpecError(f"expected a priority between -1000 and 1000, got {priority}")
    chosen = job.c.id.in_(with_shards(ids)) & job.c.state.in_(UNFINISHED)
    first = update(job).where(chosen & (job.c.kind == "train")).values(priority=STEPS * priority + 1)
    rest = update(job).where(chosen & (job.c.kind != "train")).values(priority=STEPS * priority)
    return db.execute(first).rowcount + db.execute(rest).rowcount
