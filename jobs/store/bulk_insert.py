"""New rows in bulk, each job once whoever puts it there."""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select

from robustq.jobs.store.schema import job, job_dep

CHUNK = 500  # databases bound the number of values in a statement


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def insert_new(db: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Insert those rows that are not there yet."""
    from sqlalchemy.dialects import postgresql, sqlite  # not at the top: readers take `chunks`, and would wait for it

    dialect = {"sqlite": sqlite, "postgresql": postgresql}[db.dialect.name]
    for some in chunks(rows):
        db.execute(dialect.insert(table).on_conflict_do_nothing(), list(some))


def known_jobs(db: Connection, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Number and state of the jobs with these keys, by key."""
    found = {}
    for some in chunks(keys):
        for row in db.execute(select(job.c.key, job.c.id, job.c.state).where(job.c.key.in_(some))):
            found[row.key] = row.id, row.state
    return found


def add_jobs(db: Connection, rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Insert the jobs that the store does not know, all rows with the same columns; all of them by key, in order."""
    insert_new(db, job, rows)
    found = known_jobs(db, [row["key"] for row in rows])
    return {row["key"]: found[row["key"]] for row in rows}


def add_dependencies(db: Connection, pairs: Sequence[tuple[int, int]]) -> None:
    """pairs: a job and one that it needs."""
    insert_new(db, job_dep, [{"job_id": waits, "needs_id": needed} for waits, needed in pairs])
