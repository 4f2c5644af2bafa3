"""The removal of sweeps: their jobs, results and files, as far as nothing else that stays needs them.

First the rows go, in one transaction; what their files were is still in the table `artifact` then. Files go after that,
and their rows last. So whoever is killed in between leaves nothing but files and rows that the next prune takes along.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, or_, select

from robustq.jobs.errors import SpecError, StoreError
from robustq.jobs.queue.dependencies import ancestors
from robustq.jobs.queue.transitions import LEASE_SECONDS
from robustq.jobs.store import artifact_files
from robustq.jobs.store.artifact_files import File
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import (
    artifact,
    attempt,
    audit,
    check_result,
    driver,
    event,
    example_blob,
    explanation,
    job,
    job_artifact,
    job_dep,
    result,
    sweep,
    sweep_job,
)
from robustq.jobs.text.safe_text import address

OF_JOBS = (event, attempt, check_result, audit, explanation, example_blob, result, job_artifact, sweep_job)


@dataclass(frozen=True)
class Going:
    """What a prune removes. sweeps, jobs: their numbers.  files: artifacts by hash with their bytes.  left: files in
    the store's own folder that nothing rests on.  kept: jobs of these sweeps that others need.
    """

    sweeps: list[int]
    jobs: list[int]
    kept: int
    outcome_bytes: int
    files: dict[str, int]
    left: list[File]

    @property
    def bytes(self) -> int:
        return self.outcome_bytes + sum(self.files.values()) + sum(file.bytes for file in self.left)


def named_sweeps(db: Connection, names: Sequence[str]) -> list[int]:
    """Every version of the sweeps of these names. Raises SpecError for a name that there is not."""
    rows = db.execute(select(sweep.c.id, sweep.c.name)).all()
    known = {row.name for row in rows}
    for name in names:
        if name not in known:
            raise SpecError(f"there is no sweep {name!r}, the store has: {', '.join(sorted(known)) or 'none'}")
    return sorted(row.id for row in rows if row.name in names)


def going(db: Connection, store: Store, sweeps: Sequence[int]) -> Going:
    """What goes with these sweeps; with none, what is left of earlier ones."""
    jobs, kept = jobs_of_these_alone(db, sweeps)
    return Going(
        sweeps=list(sweeps),
        jobs=jobs,
        kept=kept,
        outcome_bytes=outcome_bytes(db, jobs),
        files=files_of(db, jobs),
        left=left_files(db, store),
    )


def jobs_of_these_alone(db: Connection, sweeps: Sequence[int]) -> tuple[list[int], int]:
    """The jobs of these sweeps that no other sweep has or rests on, and how many there are besides."""
    mine = set(db.execute(select(sweep_job.c.job_id).where(sweep_job.c.sweep_id.in_(sweeps))).scalars())
    theirs = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id.not_in(sweeps))
    wanted = select(job.c.id).where(or_(job.c.id.in_(theirs), job.c.id.not_in(select(sweep_job.c.job_id))))
    kept = set(db.execute(wanted).scalars()) | set(db.execute(ancestors(wanted)).scalars()) if mine else set()
    return sorted(mine - kept), len(mine & kept)


def outcome_bytes(db: Connection, jobs: Sequence[int]) -> int:
    size = func.coalesce(func.sum(func.length(example_blob.c.data)), 0)
    return sum(db.execute(select(size).where(example_blob.c.job_id.in_(some))).scalar_one() for some in chunks(jobs))


def files_of(db: Connection, jobs: Sequence[int]) -> dict[str, int]:
    """Artifacts that none but these jobs left, by hash, with their bytes; and those of jobs that went before."""
    users: dict[str, set[int]] = {}
    for sha256, job_id in db.execute(select(job_artifact.c.sha256, job_artifact.c.job_id)):
        users.setdefault(sha256, set()).add(job_id)
    these = set(jobs)
    rows = db.execute(select(artifact.c.sha256, artifact.c.bytes))
    return {sha256: size for sha256, size in rows if users.get(sha256, set()) <= these}


def left_files(db: Connection, store: Store) -> list[File]:
    """Files in the store's own folder that no store beside it knows: of killed workers and merges."""
    folder = artifact_files.own_folder(store)
    if folder is None:
        return []
    known = set(db.execute(select(artifact.c.sha256)).scalars()) | artifact_files.of_neighbours(store)
    open_ = set(db.execute(select(job.c.key).where(job.c.state != "done")).scalars())
    found = [file for file in artifact_files.blobs(folder) if file.name not in known]
    return found + [file for file in artifact_files.states(folder) if file.name not in open_ | known]


def prune(store: Store, names: Sequence[str]) -> Going:
    """Remove these sweeps, and what is left of earlier ones. Raises StoreError while a driver is at work, on this store
    or on one beside it.
    """
    with store.begin() as db:
        refuse_at_work(db, store)
        refuse_beside_one_at_work(store)
        found = going(db, store, named_sweeps(db, names))
        artifact_files.of_neighbours(store)  # raises before anything is gone
        delete_jobs(db, found.jobs)
        for table in (sweep_job, sweep):
            column = sweep_job.c.sweep_id if table is sweep_job else sweep.c.id
            db.execute(delete(table).where(column.in_(found.sweeps)))
    remove_files(store)
    return found


def delete_jobs(db: Connection, jobs: Sequence[int]) -> None:
    """Delete jobs with all that is known of them. Their files stay, and are in the table `artifact` still."""
    for some in chunks(jobs):
        for table in OF_JOBS:
            db.execute(delete(table).where(table.c.job_id.in_(some)))
        db.execute(delete(job_dep).where(job_dep.c.job_id.in_(some) | job_dep.c.needs_id.in_(some)))
    for some in chunks(jobs):
        db.execute(delete(job).where(job.c.id.in_(some)))


def remove_files(store: Store) -> None:
    """Remove the files of jobs that are gone. Meanwhile nobody else writes: a worker might bring one back."""
    with store.begin() as db:
        refuse_at_work(db, store)
        refuse_beside_one_at_work(store)
        others = artifact_files.of_neighbours(store)
        for file in left_files(db, store):
            file.path.unlink(missing_ok=True)
        for sha256 in files_of(db, ()):
            if sha256 not in others:
                artifact_files.remove(store.artifacts, sha256)
            db.execute(delete(artifact).where(artifact.c.sha256 == sha256))


def refuse_at_work(db: Connection, store: Store) -> None:
    """Raise StoreError where a driver works on the store, or did a moment ago."""
    at_work = driver.c.stopped_at.is_(None) & (driver.c.heartbeat_at > time.time() - LEASE_SECONDS)
    row = db.execute(select(driver.c.host, driver.c.pid).where(at_work)).first()
    if row is not None:
        raise StoreError(
            f"a driver is at work on the store {address(store.url)}, or was less than {LEASE_SECONDS:.0f} seconds ago "
            f"(process {row.pid} on {row.host}): stop it, or wait for its end"
        )


def refuse_beside_one_at_work(store: Store) -> None:
    """Raise StoreError where a driver works on another store of the same folder: of its files some have no row yet."""
    if artifact_files.own_folder(store) is None:
        return
    if (other := artifact_files.busy_neighbour(store, time.time() - LEASE_SECONDS)) is not None:
        raise StoreError(
            f"a driver is at work on the store {other}, or was less than {LEASE_SECONDS:.0f} seconds ago, whose files "
            f"lie in the same folder as those of {address(store.url)}: stop it, or wait for its end"
        )


def sizes(db: Connection) -> list[dict[str, Any]]:
    """What each sweep takes up, in bytes, the largest first. freed: what a prune of it alone would free."""
    names: dict[str, list[int]] = {}
    for id_, name in db.execute(select(sweep.c.id, sweep.c.name).order_by(sweep.c.id)):
        names.setdefault(name, []).append(id_)
    before = sum(files_of(db, ()).values())
    rows = []
    for name, ids in names.items():
        mine = sorted(set(db.execute(select(sweep_job.c.job_id).where(sweep_job.c.sweep_id.in_(ids))).scalars()))
        alone, _ = jobs_of_these_alone(db, ids)
        rows.append(
            {
                "sweep": name,
                "versions": len(ids),
                "jobs": len(mine),
                "outcomes": outcome_bytes(db, mine),
                "artifacts": sum(artifacts_of(db, mine).values()),
                "freed": outcome_bytes(db, alone) + sum(files_of(db, alone).values()) - before,
            }
        )
    return sorted(rows, key=lambda row: (-row["outcomes"] - row["artifacts"], row["sweep"]))


def artifacts_of(db: Connection, jobs: Sequence[int]) -> dict[str, int]:
    """All artifacts of these jobs, by hash, with their bytes."""
    rows = select(artifact.c.sha256, artifact.c.bytes).join(job_artifact, job_artifact.c.sha256 == artifact.c.sha256)
    found: dict[str, int] = {}
    for some in chunks(jobs):
        found |= pairs(db, rows.where(job_artifact.c.job_id.in_(some)))
    return found


def pairs(db: Connection, query: Any) -> dict[Any, Any]:
    """A selection of two columns, the second by the first."""
    rows: Any = db.execute(query)
    return {one: other for one, other in rows}
