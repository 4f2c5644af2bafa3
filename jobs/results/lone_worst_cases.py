"""The worst case where one attack alone bears on a model at a radius: its row, beside those that are computed."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, select

from robustlib.settings import AUDIT, CERTIFY
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Condition, Filters, fits
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, sweep_job

NEEDED = ("sweep", "model", "seed", "dataset", "attack", "norm", "eps", "recipe", "job_id")
NONE = (WORST_CASE, CERTIFY, AUDIT)  # what is the worst of nothing
PLACE = ("model", "seed", "dataset", "norm")


def with_lone(
    db: Connection, filters: Filters, rows: Sequence[ResultRow], columns: Sequence[str], *, whole: bool = False
) -> list[ResultRow]:
    """The rows that the filters leave, with a worst case for each model at each radius on which one attack alone bears.

    No job computes that, since it is the attack's own number: the row is the attack's, under the name of worst cases.
    Such rows are added where the filters ask for worst cases, or other rows are some.
    columns, whole: as for `chosen_rows`, which the rows come from.
    """
    of_attacks = [group for group in filters.groups if group[0].column == "attack"]
    asked = any(one.operator == "=" and fits(WORST_CASE, one.value) for group in of_attacks for one in group)
    if not all(any(admits(one) for one in group) for group in of_attacks):
        return list(rows)
    if not asked and not any(row.get("attack") == WORST_CASE for row in rows):
        return list(rows)
    others = Filters(filters.sweep, tuple(group for group in filters.groups if group not in of_attacks))
    found = chosen_rows(db, others, tuple(dict.fromkeys((*columns, *NEEDED))), whole=whole)
    lone = lone_jobs(db, [row["job_id"] for row in found if row["norm"] and row["eps"] and row["attack"] not in NONE])
    added: list[Any] = [
        {**row, "attack": WORST_CASE, "recipe": f"worst of 1, {row['recipe']}"}
        for row in found
        if row["job_id"] in lone
    ]
    keep = set(columns)
    return [*rows, *(cast("ResultRow", {n: v for n, v in row.items() if n in keep}) for row in added)]


def admits(condition: Condition) -> bool:
    return fits(WORST_CASE, condition.value) == (condition.operator == "=")


def lone_jobs(db: Connection, ids: Sequence[int]) -> set[int]:
    """Those of these evaluations at a radius beside which no other attack of their sweep bears on the same network."""
    found: set[int] = set()
    mine, theirs, here, there = job.alias(), job.alias(), sweep_job.alias(), sweep_job.alias()
    bears = theirs.c.eps.is_(None) | (theirs.c.eps <= mine.c.eps)
    same = [theirs.c[name] == mine.c[name] for name in ("seed", "dataset", "norm")]
    another = (
        select(there.c.job_id)
        .join(theirs, theirs.c.id == there.c.job_id)
        .where((there.c.sweep_id == here.c.sweep_id) & (there.c.model == here.c.model) & (theirs.c.id != mine.c.id))
        .where(*same, bears, theirs.c.kind == "eval", theirs.c.attack.not_in(NONE))
    )
    for some in chunks(list(ids)):
        query = select(mine.c.id).join(here, here.c.job_id == mine.c.id).where(mine.c.id.in_(some), ~another.exists())
        found |= set(db.execute(query).scalars())
    return found
