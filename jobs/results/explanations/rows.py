"""Rows of explanations that filters leave. Never writes; loads neither torch nor NumPy.

`explanation_rows(db, Filters(sweep_id))` is what pages ask: a row for each job and each thing that was done to its
images, the clean images first, then noise, attacks on the class, and the attack on the explanation. Means and their
intervals are in the rows; `robustq.jobs.store.explanations.measures.measures_of` has the numbers of single images.
A job with `images` left a file in the role `maps`, with images and maps of its first examples:
`robustq.jobs.results.rows.artifact_of(db, job_id, "maps")` is its hash, and `jobs/running/explanations.py`, first_maps,
says what is in it.
"""

from collections.abc import Sequence
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.reasons.reasons import reasons
from robustq.jobs.results.columns import WHY, as_json
from robustq.jobs.results.conditions_sql import conditions
from robustq.jobs.results.explanations.columns import EXPLANATION_COLUMNS, ExplanationRow, place_of
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.schema import explanation

ALL = Filters()


def view() -> Any:
    """v_explanations, as something to select from."""
    names = (*EXPLANATION_COLUMNS, "sweep_id")
    return sa.table("v_explanations", *[sa.column(name) for name in names if name != WHY])


def explanation_rows(db: Connection, filters: Filters = ALL, *, whole: bool = False) -> list[ExplanationRow]:
    """The rows that the filters leave, by sweep and job. whole: see `robustq.jobs.results.rows.chosen_rows`.

    Raises SpecError for a condition on a column that explanations do not have.
    """
    for group in filters.groups:
        for condition in group:
            check_column(condition.column.partition(".")[0])
    rows = view()
    chosen = conditions(db, filters, rows, whole=whole)  # which says where there is no such sweep
    if not any_explanations(db):
        return []
    names = [name for name in EXPLANATION_COLUMNS if name != WHY]
    query = select(rows.c.sweep_id, *[rows.c[name] for name in names])
    query = query.where(*chosen)
    read = sorted(
        db.execute(query).mappings(), key=lambda row: (row["sweep_id"], row["job_id"], place_of(row["against"]))
    )
    why = reasons(db, {row["job_id"]: row["verdict"] for row in read})
    found = [{name: row[name] for name in names} | {WHY: why.get(row["job_id"])} for row in read]
    for row in found:
        row["versions"] = as_json(row["versions"])
    return [cast("ExplanationRow", {name: row[name] for name in EXPLANATION_COLUMNS}) for row in found]


def asks_of_explanations(filters: Filters) -> bool:
    """Whether every condition is on a column that explanations have."""
    asked = {condition.column.partition(".")[0] for group in filters.groups for condition in group}
    return asked <= set(EXPLANATION_COLUMNS)


def check_column(name: str, known: Sequence[str] = EXPLANATION_COLUMNS) -> None:
    if name not in known:
        words = f"explanations have no column {name!r}, expected one of: {', '.join(known)}"
        raise SpecError(f"{words}{did_you_mean(name, known)}")


def any_explanations(db: Connection) -> bool:
    """Whether the store holds any: a look that costs nothing, however many results there are."""
    return db.execute(select(explanation.c.job_id).limit(1)).first() is not None
