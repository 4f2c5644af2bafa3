"""Sweeps by name: the latest of each, and their jobs."""

from typing import Any

from sqlalchemy import Connection, select

from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.store.schema import job, sweep, sweep_job

LATEST_FIRST = (sweep.c.created_at.desc(), sweep.c.id.desc())  # a study that is submitted again is the latest again


def latest_sweeps(db: Connection) -> dict[str, int]:
    """Of each name the sweep that was asked for last, the latest first."""
    found: dict[str, int] = {}
    for id_, name in db.execute(select(sweep.c.id, sweep.c.name).order_by(*LATEST_FIRST)):
        found.setdefault(name, id_)
    return found


def find_sweep(db: Connection, name: str | None) -> int | None:
    """The sweep of this name that was asked for last; None for no name. Raises SpecError where there is none, with
    those there are.
    """
    if name is None:
        return None
    found = db.execute(select(sweep.c.id).where(sweep.c.name == name).order_by(*LATEST_FIRST).limit(1)).scalar()
    if found is None:
        names = db.execute(select(sweep.c.name).distinct().order_by(sweep.c.name)).scalars().all()
        known = ", ".join(names) or "none"
        raise SpecError(f"there is no sweep {name!r}, the store has: {known}{did_you_mean(name, names)}")
    return found


def sweep_name(db: Connection, sweep_id: int) -> str:
    return db.execute(select(sweep.c.name).where(sweep.c.id == sweep_id)).scalar_one()


def jobs_of(sweep_id: int | None) -> Any:
    """A selection of the ids of a sweep's jobs, or of all."""
    return select(job.c.id) if sweep_id is None else select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
