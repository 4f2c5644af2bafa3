"""Two models, or two evaluations, over the same examples."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from sqlalchemy import Connection, select

from robustlib.datasets.source import TEST
from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.statistics.model_pairs import Seen
from robustq.jobs.statistics.significance import holm, paired
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.example_outcomes import examples_of, numbers_of
from robustq.jobs.store.schema import job, job_dep
from robustq.jobs.text.numbers import eps_text
from robustq.jobs.text.tables import Row

SAME_ATTACK = ("dataset", "attack", "norm", "eps", "recipe", "seed")
COMPARED_COLUMNS = (*SAME_ATTACK, "model", "n", "job_id", "verdict", "why")


class Comparison(TypedDict):
    """Two evaluations over the same examples. dataset to seed: None where the two differ in it.

    Accuracies are fractions; difference to p_chi2: see `Paired` in significance.py.  p_holm: p_exact by Holm's
    correction for all rows of the answer.
    """

    first: str
    second: str
    dataset: str | None
    attack: str | None
    norm: str | None
    eps: float | None
    recipe: str | None
    seed: int | None
    n: int
    first_accuracy: float
    second_accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    only_first: int
    only_second: int
    p_exact: float
    p_holm: float
    p_chi2: float | None
    first_job_id: int
    second_job_id: int
    first_verdict: str | None
    second_verdict: str | None
    first_why: str | None
    second_why: str | None


def compare(db: Connection, filters: Filters, pair: Sequence[str]) -> list[Comparison]:
    """A row for each two evaluations that differ only by model and have examples in common; difference is second minus
    first. pair: two models, or two numbers of jobs. Raises SpecError where there is no such pair.
    """
    matches = match_jobs(db, filters, pair) if all(text.isdecimal() for text in pair) else []
    matches = matches or match_models(db, filters, pair)
    found = [compared(db, first, second) for first, second in matches]
    corrected = holm([row["p_exact"] for row in found])
    return [{**row, "p_holm": p} for row, p in zip(found, corrected, strict=True)]


def match_jobs(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[ResultRow, ResultRow]]:
    one = filters.narrowed(make_filters(None, {"job_id": pair}))
    rows = {str(row["job_id"]): row for row in chosen_rows(db, one, COMPARED_COLUMNS)}
    return [(rows[pair[0]], rows[pair[1]])] if set(pair) <= set(rows) else []


def match_models(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[ResultRow, ResultRow]]:
    """The latest evaluation of each model under each attack, where both have one."""
    found: list[dict[tuple[Any, ...], ResultRow]] = []
    for model in pair:
        one = filters.narrowed(make_filters(None, {"model": model}))
        rows = chosen_rows(db, one, COMPARED_COLUMNS)
        if not rows:
            there = {row["model"] for row in chosen_rows(db, filters, ("model",))}
            raise SpecError(
                f"--compare: no result is of model {model!r}, nor do both words name results by their number"
                f"{did_you_mean(model, sorted(there))}"
            )
        found.append({tuple(row[name] for name in SAME_ATTACK): row for row in rows})
    first, second = found
    if not (both := [place for place in first if place in second]):
        raise SpecError(f"--compare: {pair[0]!r} and {pair[1]!r} have no attack with the same parameters and seed")
    return [(first[place], second[place]) for place in both]


def outcome(db: Connection, job_id: int) -> dict[str, np.ndarray]:
    """Per-example outcomes in the order of their index."""
    columns = example_outcomes.to_columns(examples_of(db, job_id))
    order = np.argsort(columns["index"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def seen(db: Connection, row: Row, column: str = "adversarial_correct") -> Seen:
    """What an evaluation saw of each image, for `versus`; where the store lost that, how many were right.

    row: its job_id, n and accuracies.  column: adversarial_correct, or clean_correct for the images as they are.
    """
    try:
        found = numbers_of(db, row["job_id"], ("index", "label", column))
    except SpecError:
        return Seen.counted(row["robust_accuracy" if column == "adversarial_correct" else "clean_accuracy"], row["n"])
    order = np.argsort(found["index"], kind="stable")
    index, label, right = (found[name][order] for name in ("index", "label", column))
    return Seen(index, label, right.astype(bool) if np.isin(right, (0, 1)).all() else right)


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


def compared(db: Connection, first: ResultRow, second: ResultRow) -> Comparison:
    splits = [split_of(db, row["job_id"]) for row in (first, second)]
    if splits[0] != splits[1]:
        raise SpecError(f"expected evaluations of the same examples, got one of {splits[0]} and one of {splits[1]}")
    one, other = in_common(outcome(db, first["job_id"]), outcome(db, second["job_id"]))
    found = paired(one["adversarial_correct"], other["adversarial_correct"])
    apart = [name for name in SAME_ATTACK if first[name] != second[name]]  # two numbers of jobs may name what they like
    shared: dict[str, Any] = {name: None if name in apart else first[name] for name in SAME_ATTACK}
    return Comparison(
        first=side_name(first, apart),
        second=side_name(second, apart),
        dataset=shared["dataset"],
        attack=shared["attack"],
        norm=shared["norm"],
        eps=shared["eps"],
        recipe=shared["recipe"],
        seed=shared["seed"],
        n=found.n,
        first_accuracy=float(one["adversarial_correct"].mean(dtype=np.float64)),
        second_accuracy=float(other["adversarial_correct"].mean(dtype=np.float64)),
        difference=found.difference,
        difference_low=found.low,
        difference_high=found.high,
        only_first=found.only_first,
        only_second=found.only_second,
        p_exact=found.p_exact,
        p_holm=found.p_exact,  # of this row alone
        p_chi2=found.p_chi2,
        first_job_id=first["job_id"],
        second_job_id=second["job_id"],
        first_verdict=first["verdict"],
        second_verdict=second["verdict"],
        first_why=first["why"],
        second_why=second["why"],
    )


def side_name(row: ResultRow, apart: Sequence[str]) -> str:
    """The model, with what else tells the two evaluations apart."""
    return ", ".join([row["model"], *(eps_text(row[name]) if name == "eps" else str(row[name]) for name in apart)])
