"""Changes that a study submitted again may make to jobs that are not done: all that is no part of their keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, job_dep, sweep_job
from robustq.jobs.submission.plan import Planned, Resolved

OPEN = job.c.state.in_(("blocked", "queued", "failed", "cancelled"))
OF_A_SHARD = ("kind", "first", "last", "shards")  # what its spec has of its own


def has_moved(db: Connection, sweep_id: int, resolved: Resolved) -> bool:
    """Whether jobs of the sweep that are not done look for files elsewhere than where the study now has them."""
    mine = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
    # The jobs of one model and data look in the same places.
    some = select(sa.func.min(job.c.id)).where(job.c.id.in_(mine) & OPEN).group_by(job.c.kind, job.c.subject)
    specs = db.execute(select(job.c.spec).where(job.c.id.in_(some))).scalars()
    there = {*places(resolved.data.model_dump()), *places([m.model_dump() for m in resolved.models.values()])}
    return any(place not in there for spec in specs for place in places(spec))


def places(data: Any) -> Iterator[str]:
    """Every `place` in a spec."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from [value] if name == "place" else places(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from places(value)


def refresh(db: Connection, plan: Sequence[Planned], known: Mapping[str, tuple[int, str]]) -> None:
    """Bring places, batch sizes, shards and limits of time of these jobs up to date, as far as they are not done.

    known: number and state of the jobs that the store has, by key.
    """
    wanted = {known[p.key][0]: p for p in plan if known.get(p.key, (0, "done"))[1] != "done"}
    for some in chunks(list(wanted)):
        rows = db.execute(
            select(job.c.id, job.c.spec, job.c.timeout_seconds, job.c.parts).where(job.c.id.in_(some) & OPEN)
        )
        for id_, spec, timeout, parts in rows.all():
            planned = wanted[id_]
            values = {"spec": planned.spec.model_dump(mode="json"), "timeout_seconds": planned.timeout_seconds}
            if (spec, timeout) == (values["spec"], values["timeout_seconds"]):
                continue
            db.execute(update(job).where((job.c.id == id_) & OPEN).values(**values))
            if parts:
                refresh_shards(db, id_, values)


def refresh_shards(db: Connection, parent: int, values: dict[str, Any]) -> None:
    """The same of what an evaluation was split into, which stays as it was split."""
    needs = select(job_dep.c.needs_id).where(job_dep.c.job_id == parent)
    rows = db.execute(select(job.c.id, job.c.spec).where(job.c.id.in_(needs) & (job.c.kind == "shard") & OPEN))
    for id_, spec in rows.all():
        own = {"spec": values["spec"] | {name: spec[name] for name in OF_A_SHARD}}
        db.execute(update(job).where((job.c.id == id_) & OPEN).values(**values | own))
