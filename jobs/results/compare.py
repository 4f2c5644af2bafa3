"""Two models, or two evaluations, over the same examples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from robustlib.datasets.source import TEST
from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.results.statistics import Paired, paired
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, job_dep
from robustq.jobs.text.numbers import eps_text

Row = dict[str, Any]

IDENTITY = ("dataset", "attack", "norm", "eps", "recipe", "seed")
COLUMNS = (*IDENTITY, "model", "n", "job_id", "verdict")


def compare(db: Connection, filters: Filters, pair: Sequence[str]) -> list[Row]:
    """A row for each two evaluations that differ only by model and have examples in common; difference is second minus
    first. pair: two models, or two numbers of jobs. Raises SpecError where there is no such pair.
    """
    matches = match_jobs(db, filters, pair) if all(text.isdecimal() for text in pair) else []
    matches = matches or match_models(db, filters, pair)
    return [compared(db, first, second) for first, second in matches]


def match_jobs(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[Row, Row]]:
    one = Filters(filters.sweep, (*filters.groups, *make_filters(None, {"job_id": pair}).groups))
    rows = {str(row["job_id"]): row for row in chosen_rows(db, one, COLUMNS)}
    return [(rows[pair[0]], rows[pair[1]])] if set(pair) <= set(rows) else []


def match_models(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[Row, Row]]:
    """The latest evaluation of each model under each attack, where both have one."""
    found: list[dict[tuple[Any, ...], Row]] = []
    for model in pair:
        one = Filters(filters.sweep, (*filters.groups, *make_filters(None, {"model": model}).groups))
        rows = chosen_rows(db, one, COLUMNS)
        if not rows:
            raise SpecError(
                f"--compare: no result is of model {model!r}, nor do both words name results by their number"
            )
        found.append({tuple(row[name] for name in IDENTITY): row for row in rows})
    first, second = found
    if not (both := [place for place in first if place in second]):
        raise SpecError(f"--compare: {pair[0]!r} and {pair[1]!r} have no attack with the same parameters and seed")
    return [(first[place], second[place]) for place in both]


def outcome(db: Connection, job_id: int) -> dict[str, np.ndarray]:
    """Per-example outcomes in the order of their index."""
    columns = example_outcomes.to_columns(examples_of(db, job_id))
    order = np.argsort(columns["index"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def in_common(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both outcomes, of the examples that are in both. Raises SpecError where these are not the same images."""
    shared = np.intersect1d(first["index"], second["index"])
    one, other = ({n: v[np.isin(c["index"], shared)] for n, v in c.items()} for c in (first, second))
    if not len(shared) or not np.array_equal(one["label"], other["label"]):
        raise SpecError("expected evaluations of the same examples, got different ones: their labels do not agree")
    return one, other


def split_of(db: Connection, job_id: int) -> str:
    """The split that an evaluation, or those of a worst case, looked at."""
    spec = db.execute(select(job.c.spec).where(job.c.id == job_id)).scalar_one()
    while "data" not in spec:
        needed = select(job.c.id, job.c.spec).join(job_dep, job_dep.c.needs_id == job.c.id)
        found = db.execute(needed.where(job_dep.c.job_id == job_id).limit(1)).first()
        if found is None:
            return TEST
        job_id, spec = found
    return spec["data"].get("split", TEST)


def compared(db: Connection, first: Row, second: Row) -> Row:
    splits = [split_of(db, row["job_id"]) for row in (first, second)]
    if splits[0] != splits[1]:
        raise SpecError(f"expected evaluations of the same examples, got one of {splits[0]} and one of {splits[1]}")
    one, other = in_common(outcome(db, first["job_id"]), outcome(db, second["job_id"]))
    found = paired(one["adversarial_correct"], other["adversarial_correct"])
    apart = [name for name in IDENTITY if first[name] != second[name]]  # two numbers of jobs may name what they like
    head = {name: None if name in apart else first[name] for name in IDENTITY}
    accuracies = {
        "first_accuracy": float(one["adversarial_correct"].mean(dtype=np.float64)),
        "second_accuracy": float(other["adversarial_correct"].mean(dtype=np.float64)),
    }
    names = {side: label(row, apart) for side, row in (("first", first), ("second", second))}
    numbers = {f"{side}_job_id": row["job_id"] for side, row in (("first", first), ("second", second))}
    numbers |= {f"{side}_verdict": row["verdict"] for side, row in (("first", first), ("second", second))}
    return names | head | {"n": found.n} | accuracies | as_row(found) | numbers


def label(row: Row, apart: list[str]) -> str:
    """The model, with what else tells the two evaluations apart."""
    return ", ".join([row["model"], *(eps_text(row[name]) if name == "eps" else str(row[name]) for name in apart)])


def as_row(found: Paired) -> Row:
    return {
        "difference": found.difference,
        "difference_low": found.low,
        "difference_high": found.high,
        "only_first": found.only_first,
        "only_second": found.only_second,
        "p_exact": found.p_exact,
        "p_chi2": found.p_chi2,
    }
