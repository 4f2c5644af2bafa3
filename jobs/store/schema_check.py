"""The check of a store's schema: made in an empty database, refused where it is foreign or of another version."""

import time

import sqlalchemy as sa
from sqlalchemy import Connection

from robustq.jobs.errors import StoreError
from robustq.jobs.store.schema import SCHEMA_VERSION, meta, metadata
from robustq.jobs.store.views import V_CHECKS, V_EXPLANATIONS, V_RESULTS

MAKING = 0x726F6275  # of PostgreSQL's advisory locks: ours, to make the tables under


def check_schema(db: Connection, url: str, *, create: bool) -> None:
    """Make the tables in an empty database; refuse a foreign one and other versions."""
    if create and db.dialect.name == "postgresql":  # one after the other, where several come to a new database
        db.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MAKING})
    names = sa.inspect(db).get_table_names()
    if not names and create:
        metadata.create_all(db)
        db.execute(sa.text(V_RESULTS))
        db.execute(sa.text(V_EXPLANATIONS))
        db.execute(sa.text(V_CHECKS))
        db.execute(sa.insert(meta).values(schema_version=SCHEMA_VERSION, created_at=time.time()))
        return
    version = schema_version(db, url)
    if version != SCHEMA_VERSION:
        older = f"`robustq --store {url} db upgrade` brings it there" if version < SCHEMA_VERSION else "update robustq"
        raise StoreError(
            f"store {url} has schema version {version}, this robustq reads version {SCHEMA_VERSION}: "
            f"{older}, or name another file with --store"
        )


def schema_version(db: Connection, url: str) -> int:
    """Raises StoreError where this is no store of ours."""
    inspector = sa.inspect(db)
    if meta.name not in inspector.get_table_names():
        raise StoreError(f"{url} is no robustq store: it has no table {meta.name!r}; name another file with --store")
    named = any(column["name"] == "schema_version" for column in inspector.get_columns(meta.name))
    found = db.execute(sa.select(meta.c.schema_version)).scalars().all() if named else []
    if len(found) != 1 or not isinstance(found[0], int):
        raise StoreError(
            f"{url} is no robustq store: its table {meta.name!r} tells no schema version; name another file"
        )
    return found[0]
