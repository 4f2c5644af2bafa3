"""Dependencies between jobs: what a job's end means for the jobs that need it."""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from robustq.jobs.store.schema import job, job_artifact, job_dep


def weights_of(db: Connection, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """For each of these jobs the hashes of the weights that its dependencies left, by the dependency's key."""
    rows = db.execute(
        select(job_dep.c.job_id, job.c.key, job_artifact.c.sha256)
        .join(job, job_dep.c.needs_id == job.c.id)
        .join(job_artifact, job_artifact.c.job_id == job.c.id)
        .where(job_dep.c.job_id.in_(ids) & (job_artifact.c.role == "weights"))
    )
    found: dict[int, dict[str, str]] = {}
    for job_id, key, sha256 in rows:
        found.setdefault(job_id, {})[key] = sha256
    return found


def dependents(ids: Any) -> Any:
    """Ids of all jobs that need one of these, directly or not. ids: numbers, or a selection of them."""
    tree = select(job_dep.c.job_id).where(job_dep.c.needs_id.in_(ids)).cte("tree", recursive=True)
    tree = tree.union(select(job_dep.c.job_id).join(tree, job_dep.c.needs_id == tree.c.job_id))
    return select(tree.c.job_id)


def ancestors(ids: Any) -> Any:
    """Ids of all jobs that these need, directly or not. ids: numbers, or a selection of them."""
    tree = select(job_dep.c.needs_id).where(job_dep.c.job_id.in_(ids)).cte("roots", recursive=True)
    tree = tree.union(select(job_dep.c.needs_id).join(tree, job_dep.c.job_id == tree.c.needs_id))
    return select(tree.c.needs_id)


def unblock(db: Connection, ids: Any) -> None:
    """Queue those of these jobs that are blocked and wait for nothing any more.

    They are locked before it is looked at what they need: of two drivers that finish the last two jobs that one needs
    at the same moment, neither would see the other's, and it would wait for ever. Locked in order, against deadlocks.
    """
    waiting = (job.c.state == "blocked") & job.c.id.in_(ids)
    db.execute(select(job.c.id).where(waiting).order_by(job.c.id).with_for_update())
    needed = job.alias("needed")
    missing = (
        select(job_dep.c.job_id)
        .join(needed, needed.c.id == job_dep.c.needs_id)
        .where((job_dep.c.job_id == job.c.id) & (needed.c.state != "done"))
        .exists()
    )
    db.execute(update(job).where(waiting & ~missing).values(state="queued"))


def end_dependents(db: Connection, job_id: int, state: str, message: str) -> None:
    """What needs this job, directly or not, ends with it."""
    waiting = job.c.id.in_(dependents([job_id])) & job.c.state.in_(("blocked", "queued"))
    values = {"error_class": "UpstreamFailed", "error_message": message, "finished_at": time.time()}
    db.execute(update(job).where(waiting).values(state=state, **values))
