"""Engines for SQLite and PostgreSQL: how transactions begin, and who may write."""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event

from robustq.jobs.errors import StoreError
from robustq.jobs.store.database import sqlite_files
from robustq.jobs.store.database.sqlite_files import Identity
from robustq.jobs.text.safe_text import address

BUSY_SECONDS = 30


def server_engine(url: sa.URL, *, write: bool) -> Engine:
    """An engine for PostgreSQL. A reader's transactions are read-only, but the role's grants are what guards it."""
    if url.get_backend_name() != "postgresql":
        raise StoreError(
            f"expected a store as sqlite:///FILE or a PostgreSQL URL, got {address(url.render_as_string())}"
        )
    # Connections of a driver that slept or of a server that restarted are tried before they are used.
    options = {} if write else {"options": "-c default_transaction_read_only=on"}
    return sa.create_engine(url, pool_pre_ping=True, connect_args=options)


def sqlite_engine(path: Path, mode: str, opened: list[Identity] | None = None) -> Engine:
    """An engine whose writing transactions start with BEGIN IMMEDIATE: deferred ones fail when they race.

    mode: SQLite's: ro, rw, rwc.  opened: is told of the file once it is open for writing.
    A reader opens the file anew for each transaction, so that it reads what the path names then.
    """
    write = mode != "ro"

    def connect() -> sqlite3.Connection:
        if not write:
            return sqlite_files.open_reading(path, BUSY_SECONDS)
        found = sqlite_files.connect(path, f"mode={mode}", BUSY_SECONDS)
        if opened is not None and not opened and (identity := sqlite_files.identity(path)) is not None:
            opened.append(identity)
        return found

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool if write else sa.pool.NullPool)

    @event.listens_for(engine, "connect")
    def settings(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        if write:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a recorded result survives a power cut
        else:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
