"""Files of finished jobs that are lost since: weights, kept images and maps, the outcomes of single images."""

from typing import Any

from sqlalchemy import Connection, select

from robustq.jobs.errors import ArtifactError
from robustq.jobs.queue.dependencies import ancestors
from robustq.jobs.queue.user_actions import with_shards
from robustq.jobs.store import artifacts
from robustq.jobs.store.attacked_images import attacked_images
from robustq.jobs.store.schema import example_blob, job, job_artifact

SHOWN = ("images", "maps")  # what is kept to be looked at


def lost(db: Connection, ids: Any, root: str, *, named: bool) -> list[int]:
    """Finished jobs that must run again for what these jobs are to show, or need in order to run.

    Of what they are and need: trainings without their weights, evaluations without their outcomes. Of what they are:
    evaluations whose kept images or maps are damaged, and, where the jobs are named by number, missing ones, which
    somebody may have taken away to make room.
    """
    mine = job.c.id.in_(with_shards(ids))
    needed = job.c.id.in_(ancestors(select(job.c.id).where(mine)))
    done = job.c.state == "done"
    left = select(job.c.id, job_artifact.c.role, job_artifact.c.sha256).join(
        job_artifact, job_artifact.c.job_id == job.c.id
    )
    weights, images = job_artifact.c.role == "weights", job_artifact.c.role.in_(SHOWN)
    rows = db.execute(left.where(done & ((weights & (mine | needed)) | (images & mine)))).all()
    files = {(row.sha256, row.role) for row in rows}
    states = {file: state(root, *file) for file in files}
    losses = {"weights": ("missing", "damaged")}
    losses |= dict.fromkeys(SHOWN, ("missing", "damaged") if named else ("damaged",))
    found = {row.id for row in rows if states[row.sha256, row.role] in losses[row.role]}
    told = job.c.kind.in_(("eval", "shard", "worst")) & job.c.id.not_in(select(example_blob.c.job_id))
    return sorted(found | set(db.execute(select(job.c.id).where(done & told & (mine | needed))).scalars()))


def state(root: str, sha256: str, role: str) -> str:
    """Whether a file is "whole", "damaged" or "missing". Raises OSError or SpecError where that cannot be told."""
    try:
        if role == "images":
            attacked_images(root, sha256, slice(1))
        else:
            artifacts.get(root, sha256)
    except ArtifactError as error:
        if error.reason == "unreadable":
            raise
        return error.reason
    except ValueError:
        return "damaged"
    return "whole"
