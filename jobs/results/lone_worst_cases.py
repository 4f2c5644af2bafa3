"""The worst case where one attack alone bears on a model at a radius: its row, beside those that are computed."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, select

from robustlib.settings import AUDIT, CERTIFY, EXPLAIN
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Condition, Filters, fits
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, sweep, sweep_job

NEEDED = ("sweep", "model", "seed", "dataset", "attack", "norm", "eps", "recipe", "job_id")
NONE = (WORST_CASE, CERTIFY, AUDIT, EXPLAIN)  # what is the worst of nothing
NETWORK = ("seed", "dataset", "norm")  # beside its name, what attacks on the same network agree in


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
        if (row["sweep"], row["job_id"]) in lone
    ]
    keep = set(columns)
    return placed(rows, [cast("ResultRow", {n: v for n, v in row.items() if n in keep}) for row in added])


def placed(rows: Sequence[ResultRow], lone: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows with the lone ones before the other worst cases of their model and seed, or behind its rows."""
    waiting: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in lone:
        waiting.setdefault(place_of(row), []).append(row)
    last = {place_of(row): i for i, row in enumerate(rows)}
    found: list[ResultRow] = []
    for i, row in enumerate(rows):
        place = place_of(row)
        if row.get("attack") == WORST_CASE:
            found += waiting.pop(place, ())
        found.append(row)
        if last[place] == i:
            found += waiting.pop(place, ())
    return [*found, *(row for mine in waiting.values() for row in mine)]


BESIDE = ("sweep", "model", "seed")


def place_of(row: ResultRow) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in BESIDE)


def admits(condition: Condition) -> bool:
    return fits(WORST_CASE, condition.value) == (condition.operator == "=")


def lone_jobs(db: Connection, ids: Sequence[int]) -> set[tuple[str, int]]:
    """Those of these evaluations at a radius, with the names of their sweeps, beside which no other attack of the
    latest sweep of that name bears on the same network.
    """
    sweeps: set[int] = set()
    for some in chunks(list(ids)):
        sweeps |= set(db.execute(select(sweep_job.c.sweep_id).where(sweep_job.c.job_id.in_(some)).distinct()).scalars())
    radii: dict[tuple[Any, ...], list[float]] = {}  # those of the attacks on a network, 0 for any distance
    evaluations: list[tuple[int, str, int, tuple[Any, ...], float | None]] = []
    columns = (sweep_job.c.sweep_id, sweep.c.name, job.c.id, sweep_job.c.model, *(job.c[name] for name in NETWORK))
    for some in chunks(sorted(sweeps)):
        query = select(*columns, job.c.eps).join(job, job.c.id == sweep_job.c.job_id)
        query = query.join(sweep, sweep.c.id == sweep_job.c.sweep_id).where(sweep_job.c.sweep_id.in_(some))
        query = query.where((job.c.kind == "eval") & job.c.norm.is_not(None) & job.c.attack.not_in(NONE))
        for row in map(list[Any], db.execute(query)):
            sweep_id, name, id_, network, eps = row[0], row[1], row[2], row[3:-1], row[-1]
            place = (sweep_id, *network)
            radii.setdefault(place, []).append(eps or 0.0)
            evaluations.append((sweep_id, name, id_, place, eps))
    ordered = {place: sorted(values) for place, values in radii.items()}
    latest: dict[tuple[str, int], tuple[int, bool]] = {}
    for sweep_id, name, id_, place, eps in evaluations:
        alone = bool(eps) and bisect_right(ordered[place], eps) == 1
        latest[name, id_] = max(latest.get((name, id_), (0, False)), (sweep_id, alone))
    return {place for place, (_, alone) in latest.items() if alone}
