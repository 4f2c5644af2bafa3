"""Jobs that a budget left out of the queue: they stay in their sweep, cancelled, until they are asked for again."""

import time
from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustq.jobs.queue.user_actions import WAITING, only_of, retry, with_shards
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job
from robustq.jobs.store.sweeps import jobs_of

OVER_BUDGET = "OverBudget"  # the error class of such a job
LEFT_OUT = (job.c.state == "cancelled") & (job.c.error_class == OVER_BUDGET)


def leave_out(db: Connection, sweep_id: int, ids: Sequence[int], budget: str, unwanted: Collection[int] = ()) -> None:
    """Take what waits of these jobs out of the queue, but for what another sweep wants.

    budget: as it was asked for.  unwanted: jobs that no sweep wants, whatever it has: they were left out till now.
    """
    free = only_of(db, sweep_id)[0]
    values = {"state": "cancelled", "error_class": OVER_BUDGET, "error_message": f"left out of a budget of {budget}"}
    for some in chunks(list(ids)):
        idle = with_shards([id_ for id_ in some if id_ in unwanted])
        may_go = job.c.id.in_(free) | job.c.id.in_(idle)
        chosen = job.c.id.in_(with_shards(some)) & may_go & job.c.state.in_(WAITING)
        db.execute(update(job).where(chosen).values(**values, finished_at=time.time()))


def left_out_of(db: Connection, ids: Iterable[int]) -> list[int]:
    """Those of these jobs that were left out of a budget, with their shards."""
    found = list[int]()
    for some in chunks(list(ids)):
        found += db.execute(select(job.c.id).where(job.c.id.in_(with_shards(some)) & LEFT_OUT)).scalars()
    return found


def take_in(db: Connection, ids: Iterable[int]) -> int:
    """Queue what of these jobs was left out of a budget; returns how many."""
    return sum(retry(db, some, whole=False) for some in chunks(left_out_of(db, ids)))


def count_left_out(db: Connection, sweep_id: int | None = None) -> int:
    """How many jobs of a sweep, or of all, were left out of a budget and are not asked for since."""
    chosen = LEFT_OUT & job.c.id.in_(jobs_of(sweep_id)) & (job.c.kind != "shard")
    return db.execute(select(sa.func.count()).select_from(job).where(chosen)).scalar_one()


def partial_words(left_out: int, jobs: int, name: str) -> str:
    """That a sweep is partial, and what queues the rest. name: of the sweep, quoted for a shell."""
    return (
        f"partial: {left_out} of {jobs} jobs were left out of a budget; robustq retry --sweep {name}, or the study "
        "submitted without --budget, queues them"
    )
