"""Every change of a job's state by its driver: a handful of verbs, each one guarded UPDATE in the caller's transaction.

States: blocked -> queued -> leased -> running -> done, back to queued when a worker or driver is lost, failed when the
error is the job's own, cancelled on request. Whoever writes on a job shows the fence under which it was claimed.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustlib.number_text import counted
from robustq.jobs.queue.dependencies import end_dependents, unblock
from robustq.jobs.store.artifacts import Artifact
from robustq.jobs.store.schema import (
    artifact,
    attempt,
    audit,
    check_result,
    event,
    example_blob,
    explanation,
    job,
    job_artifact,
    job_dep,
    result,
)
from robustq.jobs.text.safe_text import hide

LEASE_SECONDS = 120.0
BACKOFF_SECONDS = 5.0  # after a job's first crash, doubled by each further one
LONGEST_PAUSE_SECONDS = 60.0  # after a crash
DIED = "WorkerDied"
BAD_GPU = "gpu given up"  # an event
LIVE = ("leased", "running")
UNFINISHED = ("blocked", "queued", *LIVE)
STEPS = 2  # between the priorities of two sweeps: a training comes one before its sweep's evaluations
BESIDE = {"checks": check_result, "explanations": explanation}  # tables filled along with a result


@dataclass(frozen=True)
class Claimed:
    """A job under lease. weights: hashes of the weights that its dependencies left, by the dependency's key."""

    id: int
    key: str
    fence: int
    kind: str
    spec: dict[str, Any]
    weights: dict[str, str]
    cost: float = 0.0
    gpu_share: float | None = None
    timeout_seconds: float | None = None

    @property
    def name(self) -> str:
        return f"rq:{self.kind}:{self.id}"


def note(
    db: Connection,
    kind: str,
    job_id: int | None = None,
    fence: int | None = None,
    driver_id: str | None = None,
    **data: Any,
) -> None:
    """Record an event: what happened, for `robustq logs`; of a driver, for `robustq status` while it runs."""
    about = {"job_id": job_id, "fence": fence, "driver_id": driver_id}
    db.execute(sa.insert(event).values(at=time.time(), kind=kind, data=data or None, **about))


def mine(claimed: Claimed) -> Any:
    """The guard of every write on a claimed job: the claim still holds."""
    return (job.c.id == claimed.id) & (job.c.fence == claimed.fence) & job.c.state.in_(LIVE)


def start(
    db: Connection,
    claimed: Claimed,
    driver_id: str,
    node: str,
    pid: int,
    gpu_ids: str,
    log: str | None = None,
    *,
    gpus: float | None = None,
    cpus: float | None = None,
) -> bool:
    """A worker began: from here on an attempt counts. False if the job was meanwhile taken from this driver.

    log: where on the node what the worker prints lies.  gpus, cpus: what it holds of the machine, None where that is
    not known.
    """
    now = time.time()
    changed = db.execute(
        update(job)
        .where(mine(claimed) & (job.c.state == "leased"))
        .values(state="running", attempt=job.c.attempt + 1, started_at=now, progress_done=None, progress_note=None)
    )
    if changed.rowcount != 1:
        note(db, "stale-start", claimed.id, claimed.fence)
        return False
    n = db.execute(select(job.c.attempt).where(job.c.id == claimed.id)).scalar_one()
    db.execute(
        sa.insert(attempt).values(
            job_id=claimed.id,
            n=n,
            fence=claimed.fence,
            driver_id=driver_id,
            node=node,
            pid=pid,
            gpu_ids=gpu_ids,
            log=log,
            gpus=gpus,
            cpus=cpus,
            started_at=now,
        )
    )
    return True


def progress(db: Connection, claimed: Claimed, done: int, total: int, text: str) -> bool:
    """How far a running job is."""
    values = {"progress_done": done, "progress_total": total, "progress_note": text}
    return db.execute(update(job).where(mine(claimed)).values(**values)).rowcount == 1


def end_attempt(db: Connection, claimed: Claimed, outcome: str, at: float | None = None, **error: str) -> None:
    """at: when it ended, now unless that is known; never before it began."""
    current = (attempt.c.job_id == claimed.id) & (attempt.c.fence == claimed.fence) & attempt.c.ended_at.is_(None)
    ended = time.time() if at is None else sa.case((attempt.c.started_at > at, attempt.c.started_at), else_=at)
    db.execute(update(attempt).where(current).values(ended_at=ended, outcome=outcome, **error))


def finish(
    db: Connection,
    claimed: Claimed,
    row: dict[str, Any],
    examples: tuple[bytes, int] | None = None,
    artifacts: Iterable[Artifact] = (),
) -> bool:
    """Record a result once. False if the job was meanwhile taken from this driver, or is done already.

    row: the columns of `result`, and lists of rows of `check_result` and of `explanation`, as `checks` and
    `explanations`.  examples: the per-example outcomes as Arrow bytes, and their number.
    """
    now, beside = time.time(), {table: row.get(name, []) for name, table in BESIDE.items()}
    row = {name: value for name, value in row.items() if name not in BESIDE}
    values = {"state": "done", "finished_at": now, "lease_owner": None, "error_class": None, "error_message": None}
    if db.execute(update(job).where(mine(claimed)).values(**values)).rowcount != 1:
        note(db, "stale-result", claimed.id, claimed.fence)
        return False
    db.execute(sa.insert(result).values(job_id=claimed.id, fence=claimed.fence, recorded_at=now, **row))
    for table, rows in beside.items():
        if rows:
            db.execute(sa.insert(table), [one | {"job_id": claimed.id} for one in rows])
    if (told := (row.get("extra") or {}).get("audit")) is not None:
        add_audit(db, claimed.id, told)
    if examples is not None:
        data, n = examples
        sha256 = hashlib.sha256(data).hexdigest()
        db.execute(sa.insert(example_blob).values(job_id=claimed.id, n=n, sha256=sha256, data=data))
    for stored in artifacts:
        known = db.execute(select(artifact.c.sha256).where(artifact.c.sha256 == stored.sha256)).first()
        if known is None:
            db.execute(sa.insert(artifact).values(sha256=stored.sha256, bytes=stored.bytes, created_at=now))
        db.execute(sa.insert(job_artifact).values(job_id=claimed.id, role=stored.role, sha256=stored.sha256))
    end_attempt(db, claimed, "done")
    unblock(db, select(job_dep.c.job_id).where(job_dep.c.needs_id == claimed.id))
    return True


def add_audit(db: Connection, job_id: int, told: dict[str, Any]) -> None:
    """What an audit found, where the other results of the same model and data look for it."""
    found = db.execute(select(job.c.subject, job.c.norm, job.c.eps).where(job.c.id == job_id)).one()
    if found.subject is None:
        return
    values = {"robust_accuracy": told["adaptive_robust_accuracy"], "verdict": told["verdict"]}
    db.execute(sa.insert(audit).values(job_id=job_id, **found._mapping, **values))


def fail(db: Connection, claimed: Claimed, error_class: str, message: str, traceback: str) -> bool:
    """The job's own error: it will not be tried again, and what depends on it fails too."""
    values = {"state": "failed", "error_class": error_class, "error_message": hide(message), "finished_at": time.time()}
    if db.execute(update(job).where(mine(claimed)).values(**values, lease_owner=None)).rowcount != 1:
        note(db, "stale-failure", claimed.id, claimed.fence)
        return False
    end_attempt(db, claimed, "failed", error_class=error_class, traceback=hide(traceback))
    end_dependents(db, claimed.id, "failed", f"job {claimed.id} that it needs failed")
    return True


def release(
    db: Connection, claimed: Claimed, outcome: str, gpu_share: float | None = None, at: float | None = None
) -> bool:
    """Give a job back unharmed: its driver stops, or its bundle died before the job began.

    gpu_share: of a GPU that it turned out to need.  at: when its attempt ended, now unless that is known.
    """
    values: dict[str, Any] = {"state": "queued", "lease_owner": None, "lease_expires_at": None}
    values |= {} if gpu_share is None else {"gpu_share": gpu_share}
    changed = db.execute(update(job).where(mine(claimed)).values(**values))
    end_attempt(db, claimed, outcome, at)
    return changed.rowcount == 1


def crash(db: Connection, claimed: Claimed, reason: str, error_class: str = DIED, traceback: str = "") -> bool:
    """The worker died under a running job, or it failed of a GPU: try again, later each time, alone; after
    `max_crashes` it has failed.

    error_class, traceback: of an error that came instead of the worker's end.
    """
    row = db.execute(select(job.c.crashes, job.c.max_crashes).where(mine(claimed))).first()
    if row is None:
        return False
    crashes = row.crashes + 1
    if crashes >= row.max_crashes:
        db.execute(update(job).where(job.c.id == claimed.id).values(crashes=crashes))
        logs = select(attempt.c.log).where((attempt.c.job_id == claimed.id) & (attempt.c.fence == claimed.fence))
        place = db.execute(logs).scalar()
        where = f"; what it printed: {place}" if place else ""
        what = "its worker died" if error_class == DIED else "it failed on a GPU"
        return fail(
            db, claimed, error_class, f"{what} {counted(crashes, 'time')}, last: {reason}{where}", traceback or reason
        )
    pause = min(BACKOFF_SECONDS * 2 ** (crashes - 1), LONGEST_PAUSE_SECONDS)
    values = {"state": "queued", "lease_owner": None, "crashes": crashes, "not_before": time.time() + pause}
    db.execute(update(job).where(mine(claimed)).values(**values))
    end_attempt(db, claimed, "crashed", error_class=error_class, traceback=hide(traceback or reason))
    return True


def learn_share(db: Connection, claimed: Claimed, gpu_share: float) -> None:
    """What share of a GPU a job needed tells what jobs of the same model and data will."""
    same = select(job.c.bundle_key).where(job.c.id == claimed.id).scalar_subquery()
    unknown = job.c.state.in_(("blocked", "queued")) & job.c.gpu_share.is_(None)
    db.execute(update(job).where((job.c.bundle_key == same) & unknown).values(gpu_share=gpu_share))


def confirm_cancelled(db: Connection, claimed: Claimed) -> bool:
    """The driver stopped a running job that somebody cancelled."""
    values = {"state": "cancelled", "lease_owner": None, "cancel_requested": False, "finished_at": time.time()}
    text = {"error_class": "Cancelled", "error_message": "cancelled on request"}
    changed = db.execute(update(job).where(mine(claimed)).values(**values, **text)).rowcount == 1
    if changed:
        end_attempt(db, claimed, "cancelled")
        end_dependents(db, claimed.id, "cancelled", f"job {claimed.id} that it needs was cancelled")
    return changed
