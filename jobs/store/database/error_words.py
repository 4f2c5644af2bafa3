"""Errors of a database in words: which of them are the store's own troubles, and what mends them."""

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError

from robustq.jobs.errors import StoreError
from robustq.jobs.store.database.engines import BUSY_SECONDS

BROKEN_OFF = ("40P01", "40001")  # PostgreSQL's codes for a deadlock and for what cannot be serialised
ENDED = ("57P01", "57P02", "57P03")  # a server that shuts down, has crashed, or does not yet take anybody in
# In words only: a connection that cannot be made has no code.
UNREACHED = (
    "connection failed", "connection is bad", "failed to resolve host", "invalid connection option", "bad value for",
)  # fmt: skip
MENDS = {
    "full": "the disk is full: make room and run the same command again, nothing that was recorded is lost",
    "readonly": "it cannot be written: check the permissions of the file and its folder",
    "read-only transaction": "it was opened for reading",
    "read-only": "it cannot be written: check the permissions of the file and its folder",
    "unable to open": "it cannot be opened: check the path and its permissions",
    "not a database": "it is no SQLite database: name another file with --store",
    "malformed": "the file is damaged: restore a copy or name another file with --store",
    "disk I/O error": "it cannot be read (disk I/O error): the disk fails, or the file was changed while it was open; "
    "try again, restore a copy or name another file with --store",
    "locked": f"another process held it for more than {BUSY_SECONDS} seconds: try again",
}


def in_words(url: str, text: str) -> StoreError | None:
    """The line for what SQLite or a server says of a store; None where that is no trouble of the store's."""
    return next((StoreError(f"store {url}: {mend}") for sign, mend in MENDS.items() if sign in text), None)


def is_away(engine: Engine, error: DatabaseError) -> bool:
    """Whether a server cannot be reached, or is gone or going, as when it is restarted."""
    if engine.dialect.name == "sqlite":
        return False
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in ENDED:
        return True
    return any(sign in str(error.orig) for sign in UNREACHED)
