"""The upgrade of a store to this schema, and the facts about its schema."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from robustq.jobs.errors import StoreError
from robustq.jobs.store.connection import connect_store
from robustq.jobs.store.database.engines import BUSY_SECONDS
from robustq.jobs.store.database.sqlite_files import open_reading
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema import SCHEMA_VERSION, meta
from robustq.jobs.store.schema_check import schema_version
from robustq.jobs.store.whole_files import write_copy
from robustq.jobs.text.safe_text import address


def upgrade(url: str) -> str:
    """Bring the store to this schema, step by step in one transaction; an SQLite file is copied before. Says what was
    done.
    """
    path = parse_url(url)[1]
    with one_transaction(url) as db:
        before = schema_version(db, address(url))
    if before == SCHEMA_VERSION:
        return f"store {address(url)} has schema version {before} already"
    if before > SCHEMA_VERSION:
        raise StoreError(
            f"store {address(url)} has schema version {before}, this robustq knows {SCHEMA_VERSION}: update robustq"
        )
    kept = None if path is None else keep_copy(path, before)
    with one_transaction(url, write=True) as db:
        run_steps(db)
        db.execute(sa.update(meta).values(schema_version=SCHEMA_VERSION))
    return f"store {address(url)}: schema version {before} -> {SCHEMA_VERSION}" + (
        f", the old one is in {kept}" if kept else ""
    )


@contextmanager
def one_transaction(url: str, *, write: bool = False) -> Iterator[sa.Connection]:
    """A transaction on the store, whose connections are closed with it."""
    store = connect_store(url, write=write)
    try:
        with store.begin() as db:
            yield db
    finally:
        store.engine.dispose()


def keep_copy(path: Path, version: int) -> Path:
    """A copy of the file beside it, whole also while others write."""
    copy = path.with_name(f"{path.stem}.v{version}{path.suffix}")
    try:
        with closing(open_reading(path, BUSY_SECONDS)) as source:
            write_copy(source, copy)
    except FileExistsError:
        raise StoreError(
            f"there is a file {copy} already: move it away, the store is to be copied there first"
        ) from None
    except sqlite3.Error as error:
        raise StoreError(f"store {path}: it cannot be copied to {copy} before it is changed ({error})") from error
    return copy


def run_steps(db: sa.Connection) -> None:
    """Every step from the store's version on. The version that counts is ours, Alembic's own follows it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = db
    command.stamp(config, str(db.execute(sa.select(meta.c.schema_version)).scalar_one()), purge=True)
    command.upgrade(config, "head")
