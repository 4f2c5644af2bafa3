"""Results to select from, and conditions on them as SQL."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.results.filters import (
    JSONS,
    NULL,
    SAME,
    TIMES,
    WHOLE,
    Condition,
    Filters,
    fits,
    is_number,
    number,
    text_is,
    wild,
)
from robustq.jobs.store.schema import sweep_job
from robustq.jobs.store.sweeps import find_sweep, latest_sweeps


def view() -> Any:
    """v_results, as something to select from."""
    return sa.table("v_results", *[sa.column(name) for name in (*RESULT_COLUMNS, "sweep_id")])


def conditions(db: Connection, filters: Filters, rows: Any, *, whole: bool = False) -> list[Any]:
    """The filters as SQL conditions on `rows`, a `view()`; whole: see `chosen_rows`."""
    found: list[Any] = [sa.or_(*(compare(rows, c, db.dialect.name) for c in group)) for group in filters.groups]
    return [*found, in_sweeps(db, filters.sweep, rows, whole=whole)]


def in_sweeps(db: Connection, name: str | int | None, rows: Any, *, whole: bool) -> Any:
    if isinstance(name, int):
        return rows.c.sweep_id == name
    if name is not None and not wild(name):
        return rows.c.sweep_id == find_sweep(db, name)
    latest = latest_sweeps(db)
    if name is not None:
        latest = {known: id_ for known, id_ in latest.items() if fits(known, name)}
        if not latest:
            find_sweep(db, name)  # says which there are
    if whole:
        return rows.c.sweep_id.in_(latest.values())
    of_job = select(sa.func.max(sweep_job.c.sweep_id)).where(sweep_job.c.job_id == rows.c.job_id)
    if name is not None:
        of_job = of_job.where(sweep_job.c.sweep_id.in_(latest.values()))
    return rows.c.sweep_id == of_job.scalar_subquery()


def compare(rows: Any, condition: Condition, dialect: str) -> Any:
    """One condition as SQL. A null fits `null` and, as no value, every !=."""
    name, dot, entry = condition.column.partition(".")
    column, operator, value = rows.c[name], condition.operator, condition.value
    if is_number(name):
        return compare_number(column, operator, number(name, value))
    if name in JSONS:
        column = sa.type_coerce(column, sa.JSON)[entry].as_string() if dot else sa.cast(column, sa.Text)
    if value == NULL:
        return column.is_not(None) if operator == "!=" else column.is_(None)
    fits = text_is(column, value, dialect)
    return sa.or_(column.is_(None), sa.not_(fits)) if operator == "!=" else fits


def compare_number(column: Any, operator: str, value: float | None) -> Any:
    if value is None:
        return column.is_not(None) if operator == "!=" else column.is_(None)
    edge = 0.0 if column.name in WHOLE | TIMES else SAME * abs(value)
    match operator:
        case "=":
            return column.between(value - edge, value + edge)
        case "!=":
            return sa.or_(column.is_(None), sa.not_(column.between(value - edge, value + edge)))
        case "<":
            return column < value - edge
        case "<=":
            return column <= value + edge
        case ">":
            return column > value + edge
    return column >= value - edge
