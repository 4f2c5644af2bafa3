"""Rows of jobs copied from one store into another, under the numbers that the jobs have there."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustq.jobs.store.bulk_insert import chunks, insert_new
from robustq.jobs.store.schema import (
    artifact,
    attempt,
    audit,
    check_result,
    driver,
    event,
    example_blob,
    explanation,
    job_artifact,
    result,
)
from robustq.jobs.upkeep.prune import pairs

OF_RESULTS = (result, example_blob, check_result, audit, explanation, job_artifact)
Numbers = Mapping[int, int]  # of a job in the target, by that in the source


def copy_results(there: Connection, here: Connection, ids: Sequence[int], number: Numbers) -> None:
    for some in chunks(ids):
        for table in OF_RESULTS:
            rows = [dict(row) for row in there.execute(select(table).where(table.c.job_id.in_(some))).mappings()]
            if table is job_artifact:
                used = select(artifact).where(artifact.c.sha256.in_([row["sha256"] for row in rows]))
                insert_new(here, artifact, [dict(row) for row in there.execute(used).mappings()])
            for row in rows:
                row["job_id"] = number[row["job_id"]]
            insert_new(here, table, rows)


def copy_attempts(there: Connection, here: Connection, ids: Sequence[int], number: Numbers) -> None:
    """The attempts after those that the target has seen itself, and the drivers that made them."""
    for some in chunks(ids):
        rows = [dict(row) for row in there.execute(select(attempt).where(attempt.c.job_id.in_(some))).mappings()]
        drivers = select(driver).where(driver.c.id.in_({row["driver_id"] for row in rows}))
        insert_new(here, driver, [dict(row) for row in there.execute(drivers).mappings()])
        numbers = [number[id_] for id_ in some]
        last = select(attempt.c.job_id, sa.func.max(attempt.c.n)).where(attempt.c.job_id.in_(numbers))
        before = pairs(here, last.group_by(attempt.c.job_id))
        for row in rows:
            del row["id"]
            row["job_id"] = number[row["job_id"]]
            row["n"] += before.get(row["job_id"], 0)
        insert_new(here, attempt, rows)


def copy_events(there: Connection, here: Connection, ids: Sequence[int], number: Numbers) -> None:
    for some in chunks(ids):
        chosen = select(event).where(event.c.job_id.in_(some)).order_by(event.c.id)
        rows = [dict(row) for row in there.execute(chosen).mappings()]
        for row in rows:
            del row["id"]
            row["job_id"] = number[row["job_id"]]
        insert_new(here, event, rows)
