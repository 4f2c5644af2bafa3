"""What finished jobs have left that is lost since: weights, kept images, the outcomes of single images."""

from typing import Any

from sqlalchemy import Connection, select

from jobs import artifacts
from jobs.control import with_shards
from jobs.graph import ancestors
from jobs.schema import example_blob, job, job_artifact


def lost(db: Connection, ids: Any, root: str, *, named: bool) -> list[int]:
    """Finished jobs that must run again for what these jobs are to show, or need in order to run.

    Of what they are and need: trainings without their weights, evaluations without their outcomes. Of what they are:
    evaluations whose kept images are damaged, and, where the jobs are named by number, missing ones, which somebody
    may have taken away to make room.
    """
    mine = job.c.id.in_(with_shards(ids))
    needed = job.c.id.in_(ancestors(select(job.c.id).where(mine)))
    done = job.c.state == "done"
    files = select(job.c.id, job_artifact.c.role, job_artifact.c.sha256).join(
        job_artifact, job_artifact.c.job_id == job.c.id
    )
    weights, images = job_artifact.c.role == "weights", job_artifact.c.role == "images"
    rows = db.execute(files.where(done & ((weights & (mine | needed)) | (images & mine)))).all()
    states = {sha256: state(root, sha256) for sha256 in {row.sha256 for row in rows}}
    found = {
        row.id for row in rows if states[row.sha256] == "damaged" or
        (states[row.sha256] == "missing" and (named or row.role == "weights"))
    }  # fmt: skip
    told = job.c.kind.in_(("eval", "shard", "worst")) & job.c.id.not_in(select(example_blob.c.job_id))
    return sorted(found | set(db.execute(select(job.c.id).where(done & told & (mine | needed))).scalars()))


def state(root: str, sha256: str) -> str:
    """Whether a file is "whole", "damaged" or "missing". Raises OSError or SpecError where that cannot be told."""
    try:
        artifacts.get(root, sha256)
    except FileNotFoundError:
        return "missing"
    except ValueError as error:
        reason = getattr(error, "reason", "damaged")  # of an error that says which
        if reason == "unreadable":
            raise
        return reason
    return "whole"
