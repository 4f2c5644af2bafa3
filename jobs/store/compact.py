"""The SQLite file of a store, made as small as what is in it."""

import sqlite3
from contextlib import closing

from robustq.jobs.store.connection import Store
from robustq.jobs.store.database import sqlite_files
from robustq.jobs.store.database.engines import BUSY_SECONDS
from robustq.jobs.store.database.store_url import parse_url


def compact(store: Store) -> str | None:
    """Give the room of deleted rows back. Returns why that could not be, which leaves the file as it was; else None.

    It takes as much room again while it lasts.
    """
    path = parse_url(store.url)[1]
    if path is None:
        return None  # a server does it by itself
    store.engine.dispose()
    try:
        with closing(sqlite_files.connect(path, "mode=rw", BUSY_SECONDS)) as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError as error:
        return str(error)
    return None
