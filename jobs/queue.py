"""Every change of a job's state: a handful of verbs, each one guarded UPDATE in the caller's transaction.

States: blocked -> queued -> leased -> running -> done, back to queued when a worker or driver is lost, failed when the
error is the job's own, cancelled on request. Whoever writes on a job shows the fence under which it was claimed.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from jobs.artifacts import Artifact
from jobs.graph import dependents, end_dependents, unblock, weights_of
from jobs.schema import artifact, attempt, driver, event, example_blob, job, job_artifact, job_dep, result

LEASE_SECONDS = 120.0
BACKOFF_SECONDS = 5.0  # after a job's first crash, doubled by each further one
LIVE = ("leased", "running")
UNFINISHED = ("blocked", "queued", *LIVE)


@dataclass(frozen=True)
class Claimed:
    """A job under lease. needs: the keys of its dependencies; weights: their weights' hashes, by key."""

    id: int
    key: str
    fence: int
    kind: str
    spec: dict[str, Any]
    weights: dict[str, str]

    @property
    def name(self) -> str:
        return f"rq:{self.kind}:{self.id}"


def note(db: Connection, kind: str, job_id: int | None = None, fence: int | None = None, **data: Any) -> None:
    """Record an event: what happened, for `robustq logs`."""
    db.execute(sa.insert(event).values(at=time.time(), job_id=job_id, fence=fence, kind=kind, data=data or None))


def register(db: Connection, driver_id: str, host: str, pid: int, process_started_at: float, version: str) -> None:
    """A driver says that it is there."""
    now = time.time()
    db.execute(
        sa.insert(driver).values(
            id=driver_id,
            host=host,
            pid=pid,
            process_started_at=process_started_at,
            started_at=now,
            heartbeat_at=now,
            version=version,
        )
    )


def renew(db: Connection, driver_id: str) -> None:
    """Prolong the leases of all the driver's jobs."""
    now = time.time()
    db.execute(update(driver).where(driver.c.id == driver_id).values(heartbeat_at=now))
    held = (job.c.lease_owner == driver_id) & job.c.state.in_(LIVE)
    db.execute(update(job).where(held).values(lease_expires_at=now + LEASE_SECONDS))


def claim(
    db: Connection, driver_id: str, *, most: int, kinds: Sequence[str], scope: Any = None, budget: float = math.inf
) -> list[Claimed]:
    """Lease the next job and up to `most` - 1 others that share its model and data. Empty where nothing is ready.

    scope: a selection of job ids to stay within.  budget: no more jobs once these together are estimated to cost so
    much. A job that crashed a worker before is claimed alone; the radii of a curve, which are one search, are claimed
    together whatever `most` and `budget` say.
    """
    now = time.time()
    ready = (job.c.state == "queued") & job.c.kind.in_(kinds) & (job.c.not_before <= now)
    if scope is not None:
        ready &= job.c.id.in_(scope)
    order = (job.c.priority.desc(), job.c.id)
    first = db.execute(select(job).where(ready).order_by(*order).limit(1)).mappings().first()
    if first is None:
        return []
    rows = [first]
    radii = len(first["spec"].get("attack", {}).get("curve", ()))
    most = max(most, radii)
    if most > 1 and first["crashes"] == 0:
        mates = ready & (job.c.bundle_key == first["bundle_key"]) & (job.c.crashes == 0) & (job.c.id != first["id"])
        rows += db.execute(select(job).where(mates).order_by(*order).limit(most - 1)).mappings().all()
    claimed, spent = [], 0.0
    for row in rows:
        if spent >= budget and not radii:
            break
        spent += row["cost"]
        mine = (job.c.id == row["id"]) & (job.c.state == "queued") & (job.c.fence == row["fence"])
        lease = {"lease_owner": driver_id, "lease_expires_at": now + LEASE_SECONDS}
        changed = db.execute(update(job).where(mine).values(state="leased", fence=row["fence"] + 1, **lease))
        if changed.rowcount == 1:
            weights = weights_of(db, row["id"])
            claimed.append(Claimed(row["id"], row["key"], row["fence"] + 1, row["kind"], row["spec"], weights))
    return claimed


def mine(claimed: Claimed) -> Any:
    """The guard of every write on a claimed job: the claim still holds."""
    return (job.c.id == claimed.id) & (job.c.fence == claimed.fence) & job.c.state.in_(LIVE)


def start(db: Connection, claimed: Claimed, driver_id: str, node: str, pid: int, gpu_ids: str) -> bool:
    """A worker began: from here on an attempt counts. False if the job was meanwhile taken from this driver."""
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
            started_at=now,
        )
    )
    return True


def progress(db: Connection, claimed: Claimed, done: int, total: int, text: str) -> bool:
    """How far a running job is."""
    values = {"progress_done": done, "progress_total": total, "progress_note": text}
    return db.execute(update(job).where(mine(claimed)).values(**values)).rowcount == 1


def end_attempt(db: Connection, claimed: Claimed, outcome: str, **error: str) -> None:
    current = (attempt.c.job_id == claimed.id) & (attempt.c.fence == claimed.fence) & attempt.c.ended_at.is_(None)
    db.execute(update(attempt).where(current).values(ended_at=time.time(), outcome=outcome, **error))


def finish(
    db: Connection,
    claimed: Claimed,
    row: dict[str, Any],
    examples: tuple[bytes, int] | None = None,
    artifacts: Iterable[Artifact] = (),
) -> bool:
    """Record a result once. False if the job was meanwhile taken from this driver, or is done already.

    examples: the per-example outcomes as Arrow bytes, and their number.
    """
    now = time.time()
    values = {"state": "done", "finished_at": now, "lease_owner": None, "error_class": None, "error_message": None}
    if db.execute(update(job).where(mine(claimed)).values(**values)).rowcount != 1:
        note(db, "stale-result", claimed.id, claimed.fence)
        return False
    db.execute(sa.insert(result).values(job_id=claimed.id, fence=claimed.fence, recorded_at=now, **row))
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


def fail(db: Connection, claimed: Claimed, error_class: str, message: str, traceback: str) -> bool:
    """The job's own error: it will not be tried again, and what depends on it fails too."""
    values = {"state": "failed", "error_class": error_class, "error_message": message, "finished_at": time.time()}
    if db.execute(update(job).where(mine(claimed)).values(**values, lease_owner=None)).rowcount != 1:
        note(db, "stale-failure", claimed.id, claimed.fence)
        return False
    end_attempt(db, claimed, "failed", error_class=error_class, traceback=traceback)
    end_dependents(db, claimed.id, "failed", f"job {claimed.id} that it needs failed")
    return True


def release(db: Connection, claimed: Claimed, outcome: str) -> bool:
    """Give a job back unharmed: its driver stops, or its bundle died before the job began."""
    values = {"state": "queued", "lease_owner": None, "lease_expires_at": None}
    changed = db.execute(update(job).where(mine(claimed)).values(**values))
    end_attempt(db, claimed, outcome)
    return changed.rowcount == 1


def crash(db: Connection, claimed: Claimed, reason: str) -> bool:
    """The worker died under a running job: try again, later each time, alone; after `max_crashes` it has failed."""
    row = db.execute(select(job.c.crashes, job.c.max_crashes).where(mine(claimed))).first()
    if row is None:
        return False
    crashes = row.crashes + 1
    if crashes >= row.max_crashes:
        db.execute(update(job).where(job.c.id == claimed.id).values(crashes=crashes))
        return fail(db, claimed, "WorkerDied", f"its worker died {crashes} times, last: {reason}", reason)
    pause = BACKOFF_SECONDS * 2 ** (crashes - 1)
    values = {"state": "queued", "lease_owner": None, "crashes": crashes, "not_before": time.time() + pause}
    db.execute(update(job).where(mine(claimed)).values(**values))
    end_attempt(db, claimed, "crashed", error_class="WorkerDied", traceback=reason)
    return True


def reclaim(db: Connection, dead_drivers: Sequence[str]) -> int:
    """Take back the jobs of drivers known to be dead and those whose lease ran out. Returns how many."""
    lost = job.c.state.in_(LIVE) & (job.c.lease_owner.in_(dead_drivers) | (job.c.lease_expires_at < time.time()))
    rows = db.execute(select(job).where(lost)).mappings().all()
    for row in rows:
        claimed = Claimed(row["id"], row["key"], row["fence"], row["kind"], row["spec"], {})
        release(db, claimed, "lost")
        note(db, "reclaimed", row["id"], row["fence"], from_driver=row["lease_owner"])
    return len(rows)


def stop(db: Connection, driver_id: str) -> None:
    """The driver ends: its jobs go back to the queue."""
    held = db.execute(select(job).where((job.c.lease_owner == driver_id) & job.c.state.in_(LIVE))).mappings().all()
    for row in held:
        release(db, Claimed(row["id"], row["key"], row["fence"], row["kind"], row["spec"], {}), "interrupted")
    db.execute(update(driver).where(driver.c.id == driver_id).values(stopped_at=time.time()))


def cancel(db: Connection, ids: Any) -> int:
    """Cancel jobs: at once where they wait, by their driver where they run. Returns how many were not finished."""
    chosen = job.c.id.in_(ids)
    values = {"finished_at": time.time(), "error_class": "Cancelled", "error_message": "cancelled on request"}
    waiting = db.execute(
        update(job).where(chosen & job.c.state.in_(("blocked", "queued"))).values(state="cancelled", **values)
    ).rowcount
    return (
        waiting + db.execute(update(job).where(chosen & job.c.state.in_(LIVE)).values(cancel_requested=True)).rowcount
    )


def confirm_cancelled(db: Connection, claimed: Claimed) -> bool:
    """The driver stopped a running job that somebody cancelled."""
    values = {"state": "cancelled", "lease_owner": None, "cancel_requested": False, "finished_at": time.time()}
    text = {"error_class": "Cancelled", "error_message": "cancelled on request"}
    changed = db.execute(update(job).where(mine(claimed)).values(**values, **text)).rowcount == 1
    if changed:
        end_attempt(db, claimed, "cancelled")
        end_dependents(db, claimed.id, "cancelled", f"job {claimed.id} that it needs was cancelled")
    return changed


def retry(db: Connection, ids: Any) -> int:
    """Put failed and cancelled jobs back, and those that ended only for their sake. Returns how many."""
    ended = select(job.c.id).where(job.c.id.in_(ids) & job.c.state.in_(("failed", "cancelled")))
    chosen = list(db.execute(ended).scalars())
    sake = select(job.c.id).where(job.c.id.in_(dependents(chosen)) & (job.c.error_class == "UpstreamFailed"))
    chosen = sorted({*chosen, *db.execute(sake).scalars()})
    again = {"crashes": 0, "not_before": 0.0, "cancel_requested": False, "finished_at": None}
    clear = {"state": "blocked", "error_class": None, "error_message": None}
    for start in range(0, len(chosen), 500):  # databases bound the number of values in a statement
        some = chosen[start : start + 500]
        db.execute(update(job).where(job.c.id.in_(some)).values(**again, **clear))
        unblock(db, some)
    return len(chosen)
