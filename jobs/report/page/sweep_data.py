"""The data of a sweep, read from the store in one transaction: rows, trainings, progress, failures, checks."""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustq.jobs.queue.device_time import NO_HOURS, DeviceHours, device_hours
from robustq.jobs.queue.left_out import count_left_out, left_out_words
from robustq.jobs.queue.status import IsGone, costs, counts, ended_drivers, left_behind
from robustq.jobs.queue.time_left import at_work_on, seconds_left_here
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.results.attack_labels import told_apart
from robustq.jobs.results.columns import CheckRow, PageRow, Training, as_json
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.rows import result_rows, sweep_spec, trainings
from robustq.jobs.store.schema import artifact, attempt, check_result, job, job_artifact, result, sweep, sweep_job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.text.attack_words import attack_settings
from robustq.jobs.text.tables import Row

MOST_FAILURES = 20  # that are shown with their tracebacks


@dataclass(frozen=True)
class Sweep:
    """All that is shown of a sweep but for outcomes of single images, which are read where they are needed.

    running, failed: jobs with how far they are, or why they failed.  left_behind: those of drivers that died.
    sizes: bytes and hash of the trained weights by (model, seed).  specs: of all rows' jobs by job_id.
    work: estimated cost of what is done and of what is left.  left_seconds: that this takes, None where nobody knows.
    left_out: jobs that a budget left out.  without: which, a line a budget.  hours: of devices, that it took.
    explanations: rows of their own kind.
    """

    id: int
    name: str
    spec: dict[str, Any]
    created_at: float
    rows: list[PageRow]
    checks: list[CheckRow]
    trainings: list[Training]
    sizes: dict[tuple[str, int], tuple[int, str]]
    specs: dict[int, dict[str, Any]]
    states: dict[str, int]
    work: tuple[float, float]
    running: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    left_behind: list[dict[str, Any]] = field(default_factory=list)
    left_seconds: float | None = None
    left_out: int = 0
    without: tuple[str, ...] = ()
    hours: DeviceHours = NO_HOURS
    explanations: list[ExplanationRow] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.states.values())

    @property
    def complete(self) -> bool:
        return self.states["done"] + self.left_out == self.total

    @property
    def data(self) -> dict[str, Any] | None:
        """Place and hash of the data set; None where no evaluation is done yet."""
        return next((spec["data"] for spec in self.specs.values() if "data" in spec), None)


def gather(db: Connection, sweep_id: int, cache: PageCache) -> Sweep:
    """Read a sweep. cache: what was read before of jobs that are done, filled by this call."""
    found, explained = result_rows(db, sweep_id), explanation_rows(db, Filters(sweep_id))
    details = cache.details(db, list(dict.fromkeys(row["job_id"] for row in (*found, *explained))))
    labels = told_apart(found, lambda ids: {id_: attack_settings(details[id_].spec["attack"]) for id_ in ids})
    several = len({row["seed"] for row in found}) > 1
    rows: list[PageRow] = [
        {
            **row,
            "extra": details[row["job_id"]].extra,
            "label": label,
            "name": seed_name(row) if several else row["model"],
        }
        for row, label in zip(found, labels, strict=True)
    ]
    name, created_at = db.execute(select(sweep.c.name, sweep.c.created_at).where(sweep.c.id == sweep_id)).one()
    dead = ended_drivers(db, cache.is_gone)
    return Sweep(
        id=sweep_id,
        name=name,
        spec=sweep_spec(db, sweep_id),
        created_at=created_at,
        rows=rows,
        checks=checks_of_sweep(db, sweep_id),
        trainings=trainings(db, sweep_id),
        sizes=weights_sizes(db, sweep_id),
        specs={id_: one.spec for id_, one in details.items()},
        states=counts(db, sweep_id),
        work=costs(db, sweep_id),
        running=running_jobs(db, sweep_id, dead),
        failed=failed_jobs(db, sweep_id),
        left_behind=left_behind(db, sweep_id, dead),
        left_seconds=seconds_left_here(db, sweep_id, dead),
        left_out=count_left_out(db, sweep_id),
        without=tuple(left_out_words(db, sweep_id)),
        hours=device_hours(db, sweep_id),
        explanations=explained,
    )


def seed_name(row: Row) -> str:
    """A model with its seed."""
    return f"{row['model']}, seed {row['seed']}"


def checks_of_sweep(db: Connection, sweep_id: int) -> list[CheckRow]:
    """What was checked of a sweep's results and how it came out, the most severe first."""
    c = check_result.c
    columns = (c.job_id, c.name, c.value, c.threshold, c.verdict, c.note, c.examples)
    rows = db.execute(select(*columns).where(c.job_id.in_(jobs_of(sweep_id))).order_by(c.verdict, c.job_id, c.name))
    return cast("list[CheckRow]", [dict(row) | {"examples": as_json(row["examples"])} for row in rows.mappings()])


def weights_sizes(db: Connection, sweep_id: int) -> dict[tuple[str, int], tuple[int, str]]:
    """Bytes and hash of the weights that each training left, by model and seed."""
    rows = db.execute(
        select(sweep_job.c.model, job.c.seed, artifact.c.bytes, artifact.c.sha256)
        .join(job, job.c.id == sweep_job.c.job_id)
        .join(job_artifact, job_artifact.c.job_id == job.c.id)
        .join(artifact, artifact.c.sha256 == job_artifact.c.sha256)
        .where((sweep_job.c.sweep_id == sweep_id) & (job_artifact.c.role == "weights"))
    )
    return {(model, seed): (bytes_, sha256) for model, seed, bytes_, sha256 in rows}


JOB_COLUMNS = (job.c.id, job.c.kind, sweep_job.c.model, job.c.attack, job.c.norm, job.c.eps, job.c.seed)


def running_jobs(db: Connection, sweep_id: int, dead: Collection[str] = ()) -> list[dict[str, Any]]:
    """Jobs that run now, with how far they are and for how many seconds. dead: drivers that ended without a word."""
    rows = db.execute(
        select(*JOB_COLUMNS, job.c.progress_done, job.c.progress_total, job.c.progress_note, job.c.started_at)
        .join(sweep_job, sweep_job.c.job_id == job.c.id)
        .where((sweep_job.c.sweep_id == sweep_id) & at_work_on(job, dead))
        .order_by(job.c.id)
    )
    now = time.time()
    return [dict(row) | {"seconds": now - (row["started_at"] or now)} for row in rows.mappings()]


def failed_jobs(db: Connection, sweep_id: int) -> list[dict[str, Any]]:
    """Failed jobs with the traceback of their last attempt; those that failed only because another did come last."""
    earlier = attempt.alias()
    last = select(sa.func.max(earlier.c.n)).where(earlier.c.job_id == job.c.id).correlate(job).scalar_subquery()
    rows = db.execute(
        select(*JOB_COLUMNS, job.c.error_class, job.c.error_message, attempt.c.traceback)
        .join(sweep_job, sweep_job.c.job_id == job.c.id)
        .outerjoin(attempt, (attempt.c.job_id == job.c.id) & (attempt.c.n == last))
        .where((sweep_job.c.sweep_id == sweep_id) & (job.c.state == "failed"))
        .order_by(job.c.error_class == "UpstreamFailed", job.c.id)
        .limit(MOST_FAILURES)
    )
    return [dict(row) for row in rows.mappings()]


def page_state(db: Connection, sweep_id: int, is_gone: IsGone) -> str:
    """A text that changes whenever anything on the page may: cheap enough to ask for every second."""
    mine = job.c.id.in_(jobs_of(sweep_id))
    states = counts(db, sweep_id)
    progress = select(sa.func.count(), sa.func.sum(job.c.progress_done), sa.func.sum(job.c.attempt))
    moving = db.execute(progress.where(mine & (job.c.state == "running"))).one()
    latest = select(sa.func.count(), sa.func.max(result.c.recorded_at)).where(result.c.job_id.in_(jobs_of(sweep_id)))
    dead = ended_drivers(db, is_gone)
    return repr((sweep_id, *states.values(), *moving, *db.execute(latest).one(), *dead))
