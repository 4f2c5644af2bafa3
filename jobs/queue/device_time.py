"""The cost of sweeps in device hours: the time of every attempt, by what it held of GPUs and CPUs."""

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustq.jobs.queue.transitions import LEASE_SECONDS
from robustq.jobs.store.schema import attempt, driver, job
from robustq.jobs.store.sweeps import jobs_of


@dataclass(frozen=True)
class DeviceHours:
    """gpu: hours of GPUs, in parts of one where several jobs shared it.  cpu: hours of CPU cores, of jobs on no GPU."""

    gpu: float
    cpu: float

    @property
    def words(self) -> str:
        """For people; nothing where nothing ran."""
        parts = [(self.gpu, "GPUs"), (self.cpu, "CPU cores")]
        return " and ".join(f"{hours_text(hours)} of {of}" for hours, of in parts if hours > 0)


def hours_text(hours: float) -> str:
    """Three digits, without powers of ten."""
    if hours < 0.001:
        return "less than 0.001"
    return f"{hours:.3g}" if hours < 1000 else f"{hours:.0f}"


NO_HOURS = DeviceHours(0.0, 0.0)


def device_hours(db: Connection, sweep_id: int | None = None) -> DeviceHours:
    """What a sweep's jobs have taken so far, or all jobs: also attempts that were lost, and those that run.

    Of attempts that were stored before they told what they held, a GPU counts as the share that the job is known to
    need, and else as one core. A job that two sweeps share counts in both.
    """
    now = time.time()
    silent = driver.c.heartbeat_at + LEASE_SECONDS  # from then on nothing says that its driver lives
    until = sa.case((silent < now, silent), else_=now)
    running = sa.case((job.c.state == "running", until), else_=attempt.c.started_at)
    seconds = sa.func.coalesce(attempt.c.ended_at, running) - attempt.c.started_at
    on_gpu = attempt.c.gpu_ids.is_not(None) & attempt.c.gpu_ids.not_in(("", "-1"))
    held = (attempt.c.gpus, attempt.c.cpus, job.c.gpu_share, sa.case((on_gpu, 1), else_=0).label("has_gpu"))
    rows = db.execute(
        select(*held, sa.func.sum(sa.case((seconds > 0, seconds), else_=0.0)))
        .join(job, job.c.id == attempt.c.job_id)
        .outerjoin(driver, driver.c.id == attempt.c.driver_id)
        .where(job.c.id.in_(jobs_of(sweep_id)) & (job.c.kind != "worst"))
        .group_by(*held[:3], sa.text("has_gpu"))  # by its name: PostgreSQL knows two equal expressions not for one
    )
    gpu = cpu = 0.0
    for gpus, cpus, share, has_gpu, total in rows:
        if gpus is None:
            gpus = (share or 1.0) if has_gpu else 0.0
        gpu += total * gpus
        cpu += total * (cpus or 1.0) if not gpus else 0.0
    return DeviceHours(gpu / 3600, cpu / 3600)


def as_json(hours: DeviceHours) -> dict[str, Any]:
    return {"gpu": hours.gpu, "cpu": hours.cpu}
