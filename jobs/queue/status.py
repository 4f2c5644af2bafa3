"""The progress of the work: jobs by state, what runs, what failed, all about one job. Never writes."""

import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.number_text import counted
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.transitions import BAD_GPU, LEASE_SECONDS, LIVE
from robustq.jobs.store.schema import STATES, attempt, driver, event, job, job_dep, result, sweep, sweep_job
from robustq.jobs.store.sweeps import LATEST_FIRST, jobs_of

IsGone = Callable[[int, str | None], bool]  # of a process, by its pid and identity

# What a job's model is called in the latest sweep that has the job.
MODEL = (
    select(sweep_job.c.model)
    .where(sweep_job.c.job_id == job.c.id)
    .order_by(sweep_job.c.sweep_id.desc())
    .limit(1)
    .correlate(job)
    .scalar_subquery()
    .label("model")
)


def latest_moment(db: Connection) -> float:
    """Now, for a sweep that is asked for last: after all others also where the clock was set back since."""
    last = db.execute(select(sa.func.max(sweep.c.created_at))).scalar()
    return time.time() if last is None else max(time.time(), last + 0.001)


def counts(db: Connection, sweep_id: int | None = None) -> dict[str, int]:
    """How many jobs are in each state."""
    rows = db.execute(select(job.c.state, sa.func.count()).where(job.c.id.in_(jobs_of(sweep_id))).group_by(job.c.state))
    found = {state: n for state, n in rows}
    return {state: found.get(state, 0) for state in STATES}


def smallest_share(db: Connection) -> float | None:
    """The smallest share of a GPU that a queued job is known to need."""
    return db.execute(select(sa.func.min(job.c.gpu_share)).where(job.c.state == "queued")).scalar()


def any_unfinished(db: Connection, sweep_id: int | None = None) -> bool:
    """Whether there is anything left to do."""
    open_ = select(job.c.id).where(job.c.state.in_(("blocked", "queued", "leased", "running")))
    if sweep_id is not None:
        member = (sweep_job.c.sweep_id == sweep_id) & (sweep_job.c.job_id == job.c.id)
        open_ = open_.where(select(sa.literal(1)).where(member).correlate(job).exists())
    return db.execute(open_.limit(1)).first() is not None


def widest(db: Connection, sweep_id: int | None = None) -> int:
    """How many jobs may run side by side at most: evaluations wait for the trainings of their models."""
    chosen = job.c.id.in_(jobs_of(sweep_id)) & job.c.kind.in_(("train", "eval"))
    return max(db.execute(select(sa.func.count()).where(chosen).group_by(job.c.kind)).scalars(), default=1)


def costs(db: Connection, sweep_id: int | None = None) -> tuple[float, float]:
    """The estimated cost of what is done and of what is left, running jobs by how far they are."""
    share = sa.func.coalesce(sa.cast(job.c.progress_done, sa.Float) / sa.func.nullif(job.c.progress_total, 0), 0.0)
    part = sa.case((job.c.state == "done", 1.0), (job.c.state == "running", share), else_=0.0)
    open_ = job.c.state.in_(("blocked", "queued", "leased", "running"))
    done, left = db.execute(
        select(
            sa.func.coalesce(sa.func.sum(job.c.cost * part), 0.0),
            sa.func.coalesce(sa.func.sum(sa.case((open_, job.c.cost * (1 - part)), else_=0.0)), 0.0),
        ).where(job.c.id.in_(jobs_of(sweep_id)))
    ).one()
    return done, left


def sweeps(db: Connection, left: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Every sweep with its jobs by state, the latest first. left: jobs that are counted by themselves, under `left`."""
    state = sa.case((job.c.id.in_(left), "left"), else_=job.c.state) if left else job.c.state
    rows = db.execute(
        select(sweep.c.id, sweep.c.name, sweep.c.created_at, state, sa.func.count())
        .join(sweep_job, sweep_job.c.sweep_id == sweep.c.id)
        .join(job, job.c.id == sweep_job.c.job_id)
        .group_by(sweep.c.id, sweep.c.name, sweep.c.created_at, state)
        .order_by(*LATEST_FIRST)
    )
    found: dict[int, dict[str, Any]] = {}
    counted: dict[str, int] = dict.fromkeys((*STATES, *(["left"] if left else [])), 0)
    for id_, name, created_at, its_state, n in rows:
        entry = found.setdefault(id_, {"sweep": name, "created_at": created_at} | counted)
        entry[its_state] = n
    return list(found.values())


def running(db: Connection) -> list[dict[str, Any]]:
    """Jobs that run now, with how far they are."""
    rows = db.execute(
        select(
            job.c.id, job.c.kind, MODEL, job.c.seed, job.c.arch, job.c.attack, job.c.norm, job.c.eps,
            job.c.progress_done, job.c.progress_total, job.c.progress_note, job.c.started_at,
        )
        .where(job.c.state == "running")
        .order_by(job.c.id)
    ).mappings()  # fmt: skip
    return [dict(row) | {"seconds": max(0.0, time.time() - row["started_at"])} for row in rows]


def ended_drivers(db: Connection, is_gone: IsGone) -> list[str]:
    """Drivers that never said their end, and whose process has surely ended. is_gone: see cluster/process_identity."""
    rows = db.execute(select(driver.c.id, driver.c.pid, driver.c.process).where(driver.c.stopped_at.is_(None))).all()
    return [row.id for row in rows if is_gone(row.pid, row.process)]


def left_behind(db: Connection, sweep_id: int | None, drivers: Sequence[str]) -> list[dict[str, Any]]:
    """Jobs that these drivers hold, as the store has it: whoever drives next takes them back at once."""
    held = job.c.state.in_(LIVE) & job.c.lease_owner.in_(drivers) & job.c.id.in_(jobs_of(sweep_id))
    rows = select(job.c.id, job.c.state, driver.c.host, driver.c.pid).join(driver, driver.c.id == job.c.lease_owner)
    return [dict(row) for row in db.execute(rows.where(held).order_by(job.c.id)).mappings()] if drivers else []


def left_words(left: Sequence[dict[str, Any]], name: str | None) -> str:
    """That a driver died, and how to go on. left: as `left_behind` has them.  name: of the sweep, None for all."""
    who = ", ".join(dict.fromkeys(f"pid {one['pid']} on {one['host']}" for one in left))
    mend = "robustq drive" + ("" if name is None else f" --sweep {shlex.quote(name)}")
    jobs, them = counted(len(left), "job"), "it" if len(left) == 1 else "them"
    return f"{jobs} left by a driver that died ({who}): run again, or {mend}, to go on with {them}"


def bad_gpus(db: Connection) -> list[str]:
    """GPUs that the drivers at work have given up, a line each."""
    told = select(event.c.data).join(driver, driver.c.id == event.c.driver_id).where(event.c.kind == BAD_GPU)
    at_work = driver.c.stopped_at.is_(None) & (driver.c.heartbeat_at > time.time() - 2 * LEASE_SECONDS)
    rows = db.execute(told.where(at_work).order_by(event.c.id))
    return [data["text"] for data in rows.scalars()]


def failures(db: Connection, sweep_id: int | None = None, most: int = 20) -> list[dict[str, Any]]:
    """Failed jobs and why; those that failed only because another did come last."""
    rows = db.execute(
        select(
            job.c.id,
            job.c.kind,
            MODEL,
            job.c.seed,
            job.c.arch,
            job.c.attack,
            job.c.norm,
            job.c.eps,
            job.c.error_class,
            job.c.error_message,
        )
        .where((job.c.state == "failed") & job.c.id.in_(jobs_of(sweep_id)))
        .order_by(job.c.error_class == "UpstreamFailed", job.c.id)
        .limit(most)
    )
    return [dict(row) for row in rows.mappings()]


def job_log(db: Connection, job_id: int) -> dict[str, Any]:
    """All that is known of a job: its row, what it needs, attempts, events, result."""
    row = db.execute(select(job).where(job.c.id == job_id)).mappings().first()
    if row is None:
        raise SpecError(f"there is no job {job_id}")
    parts = {
        "attempts": select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.n),
        "events": select(event).where(event.c.job_id == job_id).order_by(event.c.id),
        "results": select(result).where(result.c.job_id == job_id),
    }
    needs = db.execute(select(job_dep.c.needs_id).where(job_dep.c.job_id == job_id)).scalars().all()
    found = {name: [dict(part) for part in db.execute(query).mappings()] for name, query in parts.items()}
    model = db.execute(select(MODEL).where(job.c.id == job_id)).scalar_one()
    return dict(row) | {"model": model, "needs": list(needs)} | found
