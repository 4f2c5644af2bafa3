"""SQLite files: opened, also where nothing may be written beside them, and told from one another."""

import os
import sqlite3
from pathlib import Path

from robustq.jobs.errors import StoreError

Identity = tuple[int, int]  # device and inode


def identity(path: str | Path) -> Identity | None:
    """Which file a path leads to now; None where to none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect(path: Path, options: str, seconds: float) -> sqlite3.Connection:
    """A connection without transactions of its own, which any thread may use. seconds: to wait for a lock."""
    quoted = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(
        f"file:{quoted}?{options}", uri=True, timeout=seconds, isolation_level=None, check_same_thread=False
    )


def open_reading(path: Path, seconds: float) -> sqlite3.Connection:
    """A connection that only reads, also in a folder that cannot be written.

    SQLite wants the index of its write-ahead log beside the file. Where it can neither find nor make one and there is
    no log, the file is whole and nobody can change it, and it is read as such.
    Raises StoreError where there is a log that cannot be read so.
    """
    try:
        return tried(path, "mode=ro", seconds)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not os.access(path, os.R_OK) or os.access(path.parent, os.W_OK):
            raise
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            raise StoreError(
                f"store {path}: its last results are in {log.name} beside it, which cannot be read in a folder that "
                "cannot be written: copy both files to a folder of your own and name that copy with --store"
            ) from error
        return tried(path, "mode=ro&immutable=1", seconds)


def tried(path: Path, options: str, seconds: float) -> sqlite3.Connection:
    """A connection that has read the file once: opening it alone reads nothing."""
    db = connect(path, options, seconds)
    try:
        db.execute("PRAGMA schema_version").fetchone()
    except BaseException:
        db.close()
        raise
    return db
