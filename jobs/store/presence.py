"""The presence of a store's file while a driver writes: noticed if it is replaced or deleted, and its rows saved.

SQLite does not notice: a file that was deleted under an open connection is written on, and is gone with the process.
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from robustq.jobs.store.connection import Store
from robustq.jobs.store.database.sqlite_files import Identity, identity
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.whole_files import write_copy

MAGIC = b"SQLite format 3\0"
REPLACED, OVERWRITTEN = "replaced", "overwritten"


class StoreFile:
    """An SQLite file that is being written, and how to tell that it is not the store any more.

    Content is read by a descriptor that stays open: closing one drops all locks that SQLite holds on the file here.
    """

    def __init__(self, path: Path, opened: Identity):
        self.path, self.opened = path, opened
        self.beside = {ending: identity(f"{path}{ending}") for ending in ("-wal", "-shm")}
        self.descriptor = os.open(path, os.O_RDONLY) if identity(path) == opened else None
        self.size = self.changes = 0

    def changed(self) -> tuple[str, str] | None:
        """What has happened to the file, as a kind and in words. None where all is well.

        replaced: what was recorded is still there as long as the connection is open.  overwritten: it is lost.
        """
        if (now := identity(self.path)) != self.opened:
            return REPLACED, "was deleted or moved away" if now is None else "was replaced by another file"
        for ending, before in self.beside.items():
            if before is not None and identity(f"{self.path}{ending}") != before:
                return REPLACED, f"lost {self.path.name}{ending}, which is a part of it while it is open,"
        return (OVERWRITTEN, "was overwritten") if self.is_overwritten() else None

    def is_overwritten(self) -> bool:
        """Whether the bytes are no database's, or those of an earlier time: SQLite counts changes in the header."""
        if self.descriptor is None:
            return False
        head, size = os.pread(self.descriptor, 32, 0), os.fstat(self.descriptor).st_size
        page, changes, pages = (int.from_bytes(head[a:b], "big") for a, b in ((16, 18), (24, 28), (28, 32)))
        page = 65536 if page == 1 else page
        whole = head[:16] == MAGIC and changes >= self.changes and not (size < self.size and size < page * pages)
        if whole:
            self.size, self.changes = size, changes
        return not whole


@contextmanager
def watched(store: Store) -> Iterator[StoreFile | None]:
    """The file of a store that is written now; None for a server's."""
    path = parse_url(store.url)[1]
    if path is None or not store.opened:
        yield None
        return
    # A connection of its own, which nobody else uses: an interrupt closes the one that is in use, and were that the
    # last one, SQLite would tidy up its log, which would look as if somebody had taken it away.
    held = store.engine.raw_connection()
    held.cursor().execute("SELECT count(*) FROM sqlite_schema").fetchone()
    file = StoreFile(path, store.opened[0])
    try:
        yield file
    finally:
        held.close()
        store.engine.dispose()
        if file.descriptor is not None:
            os.close(file.descriptor)


def rescue(store: Store, file: StoreFile | None, kind: str, what: str) -> str:
    """Write what the open connection still has beside the path; returns the line that tells it all."""
    begin = f"store {store.url if file is None else file.path} {what} while this run wrote to it"
    if file is None or kind == OVERWRITTEN:
        log = "" if file is None else f", without {file.path.name}-wal and {file.path.name}-shm beside it"
        return f"{begin}: what the run recorded is lost; restore it once more{log}, and run the same command again"
    try:
        kept = keep(store, file.path)
    except (OSError, sqlite3.Error) as error:
        return f"{begin}, and what the run recorded could not be kept ({error}): run the same command again"
    return f"{begin}: all that was recorded is kept in {kept}: name it with --store and run the same command again"


def keep(store: Store, path: Path) -> Path:
    """A copy of what the open connection has: beside the path, or in the nearest folder that is there and can be
    written.
    """
    db = store.engine.raw_connection()
    held = db.driver_connection
    assert isinstance(held, sqlite3.Connection)
    try:
        for folder in (*path.parents, Path(tempfile.gettempdir())):
            if folder.is_dir() and os.access(folder, os.W_OK):
                return keep_in(held, folder, path)
        raise FileNotFoundError("no folder can be written")
    finally:
        db.close()


def keep_in(db: sqlite3.Connection, folder: Path, path: Path) -> Path:
    """Under the first name that is free."""
    for n in range(1, 10_000):
        target = folder / f"{path.stem}.kept{'' if n == 1 else f'-{n}'}{path.suffix}"
        with suppress(FileExistsError):
            write_copy(db, target)
            return target
    raise FileExistsError("all names for it are taken")
