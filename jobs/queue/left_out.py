"""Jobs that a budget left out of the queue: they stay in their sweep, cancelled, until they are asked for again."""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypedDict

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustlib.number_text import counted
from robustq.jobs.queue.user_actions import WAITING, only_of, retry, with_shards
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, sweep_job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.text.durations import duration
from robustq.jobs.text.numbers import eps_text

OVER_BUDGET = "OverBudget"  # the error class of such a job
BEGINS = "left out of a budget of "  # its message
MOST_PARTS, MOST_MODELS = 12, 4  # that a line names of what was left out
LEFT_OUT = (job.c.state == "cancelled") & (job.c.error_class == OVER_BUDGET)


def leave_out(
    db: Connection,
    sweep_id: int,
    ids: Sequence[int],
    budget: str,
    unwanted: Collection[int] = (),
    seconds: Mapping[int, float] | None = None,
) -> None:
    """Take what waits of these jobs out of the queue, but for what another sweep wants.

    budget: as it was asked for.  unwanted: jobs that no sweep wants, whatever it has: they were left out till now.
    seconds: that they were expected to take, by job, which is kept with them; infinite where nobody could tell.
    """
    free = only_of(db, sweep_id)[0]
    why: dict[str, list[int]] = {}
    for id_ in ids:
        why.setdefault(why_left_out(budget, None if seconds is None else seconds.get(id_)), []).append(id_)
    for text, mine in why.items():
        values = {"state": "cancelled", "error_class": OVER_BUDGET, "error_message": text}
        for some in chunks(mine):
            idle = with_shards([id_ for id_ in some if id_ in unwanted])
            may_go = job.c.id.in_(free) | job.c.id.in_(idle)
            chosen = job.c.id.in_(with_shards(some)) & may_go & job.c.state.in_(WAITING)
            db.execute(update(job).where(chosen).values(**values, finished_at=time.time()))


def why_left_out(budget: str, seconds: float | None) -> str:
    """The message of such a job. seconds: that it was expected to take."""
    told = f"{BEGINS}{budget}"
    if seconds is None:
        return told
    return (
        f"{told}: expected to take {duration(seconds)}" if math.isfinite(seconds) else f"{told}: nobody knows how long"
    )


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
    """How many jobs of a sweep, or of all, were left out of a budget and are not asked for since; shards among them, as
    `robustq.jobs.queue.status.counts` has them.
    """
    chosen = LEFT_OUT & job.c.id.in_(jobs_of(sweep_id))
    return db.execute(select(sa.func.count()).select_from(job).where(chosen)).scalar_one()


class LeftOut(TypedDict):
    """A job that a budget left out.  budget: as it was typed.  why: with what the job was expected to take."""

    id: int
    kind: str
    model: str
    seed: int
    attack: str | None
    norm: str | None
    eps: float | None
    budget: str
    why: str


def left_out_jobs(db: Connection, sweep_id: int | None = None) -> list[LeftOut]:
    """The jobs that `count_left_out` counts but for shards, as the study has them in order."""
    chosen = LEFT_OUT & job.c.id.in_(jobs_of(sweep_id)) & (job.c.kind != "shard")
    if sweep_id is not None:
        chosen &= sweep_job.c.sweep_id == sweep_id
    named = sa.func.min(sweep_job.c.model).label("model")
    columns = (job.c.id, job.c.kind, named, job.c.seed, job.c.attack, job.c.norm, job.c.eps)
    query = select(*columns, job.c.error_message).join(sweep_job, sweep_job.c.job_id == job.c.id).where(chosen)
    found = list[LeftOut]()
    for *row, why in db.execute(query.group_by(job.c.id).order_by(job.c.id)):
        told = dict(zip((column.name for column in columns), row, strict=True))
        budget = why.removeprefix(BEGINS).partition(":")[0]
        found.append(LeftOut(**told, budget=budget, why=why))  # pyright: ignore[reportArgumentType]
    return found


def left_out_words(db: Connection, sweep_id: int | None = None) -> list[str]:
    """What was left out and of which budget, a line a budget: an attack with its radii and models in one part."""
    found: dict[str, dict[tuple[str, str], dict[str, int]]] = {}
    for one in left_out_jobs(db, sweep_id):
        what = "training" if one["kind"] == "train" else " ".join(filter(None, (one["attack"], one["norm"])))
        place = what, "" if one["eps"] is None else str(eps_text(one["eps"]))
        models = found.setdefault(one["budget"], {}).setdefault(place, {})
        models[one["model"]] = models.get(one["model"], 0) + 1
    return [f"left out of the budget of {budget}: {parts_text(with_radii(parts))}" for budget, parts in found.items()]


def with_radii(parts: Mapping[tuple[str, str], Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The radii of an attack in one part where they were left out of the same models."""
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[str, Mapping[str, int]]]] = {}
    for (what, eps), models in parts.items():
        alike.setdefault((what, tuple(models)), []).append((eps, models))
    return {
        f"{what} {', '.join(eps for eps, _ in some)}".rstrip(): {m: sum(one[m] for _, one in some) for m in models}
        for (what, models), some in alike.items()
    }


def parts_text(parts: Mapping[str, Mapping[str, int]]) -> str:
    """parts: the number of jobs by model, by what they are."""
    told = []
    for what, models in list(parts.items())[:MOST_PARTS]:
        more = len(models) - MOST_MODELS
        names = ", ".join(list(models)[:MOST_MODELS]) + (f" and {more} more" if more > 0 else "")
        jobs = sum(models.values())
        told.append(f"{what} of {names}" + (f" ({jobs} jobs)" if jobs > len(models) else ""))
    rest = sum(sum(models.values()) for models in list(parts.values())[MOST_PARTS:])
    return "; ".join([*told, *([f"{counted(rest, 'job')} more"] if rest else [])])


def partial_words(left_out: int, jobs: int, name: str) -> str:
    """That a sweep is partial, and what queues the rest. name: of the sweep, quoted for a shell."""
    were = counted(left_out, f"of {jobs} jobs was", f"of {jobs} jobs were")
    return (
        f"partial: {were} left out of a budget; robustq retry --sweep {name}, or the study submitted without --budget, "
        f"queues {'it' if left_out == 1 else 'them'}"
    )
