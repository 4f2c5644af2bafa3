"""The files in a folder of artifacts: which there are, whose they are, and away with some."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustq.jobs.errors import StoreError
from robustq.jobs.store.artifacts import SHA256, blob_path, exists, open_root
from robustq.jobs.store.connection import Store
from robustq.jobs.store.database.engines import BUSY_SECONDS
from robustq.jobs.store.database.sqlite_files import open_reading
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.text.safe_text import address

MAGIC = b"SQLite format 3\0"


@dataclass(frozen=True)
class File:
    """A file of a store's own folder of artifacts. name: its hash, or the job's key of an unfinished training."""

    path: Path
    name: str
    bytes: int


def own_folder(store: Store) -> Path | None:
    """The folder of artifacts beside an SQLite store, in which all files are of stores in the same folder.

    None where ROBUSTQ_ARTIFACTS names one, or the store is on a server: there others may have files too.
    """
    path = parse_url(store.url)[1]
    if path is None or os.environ.get("ROBUSTQ_ARTIFACTS") or not store.artifacts:
        return None
    folder = path.parent / "artifacts"
    return folder if folder.absolute() == Path(store.artifacts).absolute() else None


def blobs(folder: Path) -> Iterator[File]:
    """Files that are kept by their hash, and what is left of some that were never finished."""
    for path in sorted((folder / "blobs").glob("*/*")):
        if path.is_file() and SHA256.fullmatch(name := path.name.partition(".")[0]):
            yield File(path, name if name == path.name else "", path.stat().st_size)


def states(folder: Path) -> Iterator[File]:
    """States of unfinished trainings, by the key of the job."""
    for path in sorted((folder / "partial").glob("*")):
        if path.is_file() and SHA256.fullmatch(name := path.name.partition(".")[0]):
            yield File(path, name, path.stat().st_size)


def of_neighbours(store: Store) -> set[str]:
    """Hashes that other stores in the same folder rest on, as copies that an upgrade kept, and keys of their jobs.

    Raises StoreError where one cannot be read: then nobody knows whose the files are.
    """
    found: set[str] = set()
    for _, answers in asked_neighbours(
        store, "SELECT sha256 FROM artifact", "SELECT key FROM job WHERE state != 'done'"
    ):
        found |= {name for (name,) in answers}
    return found


def busy_neighbour(store: Store, since: float) -> Path | None:
    """Another store in the same folder that a driver works on, with a sign of life since; None where none is.

    Its workers may have left files that no row of it names yet. Raises StoreError where one cannot be read.
    """
    at_work = f"SELECT id FROM driver WHERE stopped_at IS NULL AND heartbeat_at > {since!r} LIMIT 1"
    return next((path for path, answers in asked_neighbours(store, at_work) if answers), None)


def asked_neighbours(store: Store, *queries: str) -> Iterator[tuple[Path, list[tuple[Any, ...]]]]:
    """Each other store in the same folder with its answers to the queries. Raises StoreError for one that cannot."""
    path = parse_url(store.url)[1]
    if path is None:
        return
    for other in sorted(path.parent.iterdir()):
        if other == path or not other.is_file() or other.suffix in (".part",) or not begins_as_database(other):
            continue
        if os.path.samefile(other, path):
            continue
        try:
            with closing(open_reading(other, BUSY_SECONDS)) as db:
                tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                asked = queries if "robustq_meta" in tables else ()
                answers = [row for query in asked for row in db.execute(query)]
        except (sqlite3.Error, StoreError) as error:
            raise StoreError(
                f"the store {other} beside {address(store.url)} cannot be read ({error}), so that nobody knows which "
                "files it needs: move it away, with its artifacts"
            ) from error
        yield other, answers


def begins_as_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def remove(root: str, sha256: str) -> None:
    """Remove the file with this hash, if it is there."""
    system, base = open_root(root)
    path = blob_path(base, sha256)
    if exists(system, path):
        with suppress(FileNotFoundError):
            system.delete_file(path)
