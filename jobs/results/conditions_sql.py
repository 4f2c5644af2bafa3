"""Results to select from, and conditions on them as SQL."""

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustq.jobs.results.columns import RESULT_COLUMNS, WHY
from robustq.jobs.results.filters import (
    JSON_COLUMNS,
    NULL,
    RELATIVE_TOLERANCE,
    WHOLE_COLUMNS,
    Condition,
    Filters,
    fits,
    is_number,
    typed_number,
    wild,
)
from robustq.jobs.store.schema import sweep_job
from robustq.jobs.store.sweeps import find_sweep, latest_sweeps
from robustq.jobs.text.tables import TIME_COLUMNS


def view() -> Any:
    """v_results, as something to select from."""
    return sa.table("v_results", *[sa.column(name) for name in (*RESULT_COLUMNS, "sweep_id") if name != WHY])


def conditions(db: Connection, filters: Filters, rows: Any, *, whole: bool = False) -> list[Any]:
    """The filters as SQL conditions on `rows`, a `view()`; whole: see `chosen_rows`."""
    found: list[Any] = [sa.or_(*(condition_sql(rows, c, db.dialect.name) for c in group)) for group in filters.groups]
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


def condition_sql(rows: Any, condition: Condition, dialect: str) -> Any:
    """One condition as SQL. A null fits `null` and, as no value, every !=."""
    name, dot, entry = condition.column.partition(".")
    column, operator, value = rows.c[name], condition.operator, condition.value
    if is_number(name):
        return number_sql(column, operator, typed_number(name, value))
    if name in JSON_COLUMNS:
        column = sa.type_coerce(column, sa.JSON)[entry].as_string() if dot else sa.cast(column, sa.Text)
    if value == NULL:
        return column.is_not(None) if operator == "!=" else column.is_(None)
    fits = text_sql(column, value, dialect)
    return sa.or_(column.is_(None), sa.not_(fits)) if operator == "!=" else fits


def number_sql(column: Any, operator: str, value: float | None) -> Any:
    if value is None:
        return column.is_not(None) if operator == "!=" else column.is_(None)
    edge = 0.0 if column.name in WHOLE_COLUMNS | TIME_COLUMNS else RELATIVE_TOLERANCE * abs(value)
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


def like_pattern(pattern: str) -> str:
    """A pattern with * and ? as one of LIKE, with the escape character |."""
    plain = re.sub(r"([|%_])", r"|\1", pattern)
    return plain.replace("*", "%").replace("?", "_")


def glob_pattern(pattern: str) -> str:
    """The pattern for SQLite's GLOB, whose brackets are no wildcards of ours."""
    return pattern.replace("[", "[[]")


def text_sql(column: Any, pattern: str, dialect: str) -> Any:
    """Equal, or fitting a pattern with * and ?; capitals count on both databases."""
    if not wild(pattern):
        return column == pattern
    return (
        column.op("GLOB")(glob_pattern(pattern))
        if dialect == "sqlite"
        else column.like(like_pattern(pattern), escape="|")
    )
