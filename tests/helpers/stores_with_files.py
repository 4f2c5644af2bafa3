"""Small stores with sweeps that left files, whole contents to compare, and work that is killed at any step."""

import os
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.event import listen

from robustq.jobs.store import artifact_files, artifacts
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import artifact, job_artifact, metadata, sweep_job
from tests.helpers import fake_results


def opened(folder: Path) -> Store:
    return open_store(str(folder / "r.db"), create=True, write=True)


def result_with_file(db, store: Store, sweep_id: int, model: str, attack: str, content: bytes) -> int:
    number = fake_results.add_result(db, sweep_id, model, attack)
    leave(db, store, number, content)
    return number


def leave(db, store: Store, number: int, content: bytes) -> str:
    left = artifacts.put(store.artifacts, "images", content)
    known = db.execute(sa.select(artifact.c.sha256).where(artifact.c.sha256 == left.sha256)).first()
    if known is None:
        db.execute(sa.insert(artifact).values(sha256=left.sha256, bytes=left.bytes, created_at=0.0))
    db.execute(sa.insert(job_artifact).values(job_id=number, role="images", sha256=left.sha256))
    return left.sha256


def two_sweeps(folder: Path) -> Store:
    """`old` with two jobs of its own and one that `new` has too; each left a file, and two left the same."""
    folder.mkdir(exist_ok=True)
    store = opened(folder)
    with store.begin() as db:
        old, new = fake_results.add_sweep(db, "old"), fake_results.add_sweep(db, "new")
        result_with_file(db, store, old, "a", "fgsm", b"own")
        result_with_file(db, store, old, "a", "pgd", b"shared content")
        both = result_with_file(db, store, old, "a", "square", b"of both")
        db.execute(sa.insert(sweep_job).values(sweep_id=new, job_id=both, model="b"))
        result_with_file(db, store, new, "b", "pgd", b"shared content")
    return store


def files(store: Store) -> set[bytes]:
    return {path.read_bytes() for path in Path(store.artifacts).glob("blobs/*/*")}


def content(store: Store) -> dict[str, list]:
    """Every row of every table but drivers."""
    with store.begin() as db:
        return {
            table.name: [tuple(row) for row in db.execute(sa.select(table).order_by(*table.primary_key)).all()]
            for table in metadata.sorted_tables
        }


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do the work in a child that is killed before the given step: a change of a row or a file, or a commit.

    Returns whether it got that far.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [step]

    def count(*about):
        if len(about) > 2 and not about[2].startswith(("INSERT", "UPDATE", "DELETE")):
            return  # a statement that only reads
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)

    try:
        for name in ("before_cursor_execute", "commit"):
            listen(sa.Engine, name, count)
        for module, function in ((artifact_files, "remove"), (artifacts, "put")):
            usual = getattr(module, function)
            setattr(module, function, lambda *args, usual=usual: (count(), usual(*args))[1])
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)
