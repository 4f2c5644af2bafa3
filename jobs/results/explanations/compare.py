"""Two models' explanations over the same images: does one keep them better than the other?"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from sqlalchemy import Connection

from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.results.compare import split_of
from robustq.jobs.results.explanations.columns import SAME_EXPLANATION, ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.explanations.stability import MAIN
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.statistics.explanation_means import explained_images, steadier
from robustq.jobs.statistics.significance import holm
from robustq.jobs.store.explanations.measures import measures_of


class ExplanationComparison(TypedDict):
    """Two models' explanations of the same images, under one thing that was done to them, each image's measure the mean
    over the seeds that both have.

    n: images that both explained.  first_mean, second_mean, difference to p: see `Steadier`.  p_holm: p by Holm's
    correction for all rows of the answer.  verdicts: the worst over the seeds.
    """

    first: str
    second: str
    dataset: str
    method: str
    target: str
    norm: str
    eps: float
    against: str
    measure: str
    seeds: int
    n: int
    first_mean: float
    second_mean: float
    difference: float
    difference_low: float | None
    difference_high: float | None
    p: float
    p_holm: float
    first_verdict: str | None
    second_verdict: str | None
    first_why: str | None
    second_why: str | None


Jobs = dict[int, ExplanationRow]  # the rows of one condition by seed


def compare(db: Connection, filters: Filters, pair: Sequence[str]) -> list[ExplanationComparison]:
    """A row for each method, norm, radius and thing done to the images that both models have; difference is second
    minus first, so that it is above 0 where the second one's explanations are the steadier.

    Raises SpecError where there is nothing to compare.
    """
    first, second = (conditions_of(db, filters, model) for model in pair)
    both = [place for place in first if place in second and set(first[place]) & set(second[place])]
    if not both:
        raise SpecError(
            f"--compare: {pair[0]!r} and {pair[1]!r} have no explanation with the same method, parameters and seed"
        )
    found = [compared(db, first[place], second[place]) for place in both]
    corrected = holm([row["p"] for row in found])
    return [{**row, "p_holm": p} for row, p in zip(found, corrected, strict=True)]


def conditions_of(db: Connection, filters: Filters, model: str) -> dict[tuple[Any, ...], Jobs]:
    """The model's rows by condition and seed, the latest of each."""
    rows = explanation_rows(db, filters.narrowed(make_filters(None, {"model": model})))
    if not rows:
        there = sorted({row["model"] for row in explanation_rows(db, filters)})
        raise SpecError(f"--compare: no explanation is of model {model!r}{did_you_mean(model, there)}")
    found: dict[tuple[Any, ...], Jobs] = {}
    for row in rows:
        if row[MAIN] is not None:
            place = tuple(row[name] for name in (*SAME_EXPLANATION, "against"))
            found.setdefault(place, {})[row["seed"]] = row
    return found


def compared(db: Connection, first: Jobs, second: Jobs) -> ExplanationComparison:
    seeds = sorted(first.keys() & second.keys())
    one, other = ([jobs[seed] for seed in seeds] for jobs in (first, second))
    if len(splits := {split_of(db, row["job_id"]) for row in (*one, *other)}) > 1:
        raise SpecError(f"expected explanations of the same images, got some of {' and some of '.join(sorted(splits))}")
    told = steadier(*in_common([by_image(db, row) for row in one], [by_image(db, row) for row in other]))
    row = one[0]
    worst = [worst_of(rows) for rows in (one, other)]
    return ExplanationComparison(
        first=row["model"],
        second=other[0]["model"],
        dataset=row["dataset"],
        method=row["method"],
        target=row["target"],
        norm=row["norm"],
        eps=row["eps"],
        against=row["against"],
        measure=MAIN,
        seeds=len(seeds),
        n=told.n,
        first_mean=told.first,
        second_mean=told.second,
        difference=told.difference,
        difference_low=told.low,
        difference_high=told.high,
        p=told.p,
        p_holm=told.p,  # of this row alone
        first_verdict=worst[0]["verdict"],
        second_verdict=worst[1]["verdict"],
        first_why=worst[0]["why"],
        second_why=worst[1]["why"],
    )


def worst_of(rows: Sequence[ExplanationRow]) -> ExplanationRow:
    order = (None, "pass", "warn", "fail")
    return max(rows, key=lambda row: order.index(row["verdict"]))


def by_image(db: Connection, row: ExplanationRow) -> dict[tuple[int, int], float]:
    """The main measure of each image that was explained, by its place and label."""
    columns = measures_of(db, row["job_id"])
    chosen = (columns["against"] == row["against"]) & explained_images(columns)
    places = zip(columns["index"][chosen].tolist(), columns["label"][chosen].tolist(), strict=True)
    return dict(zip(places, columns[MAIN][chosen].tolist(), strict=True))


def in_common(
    first: Sequence[dict[tuple[int, int], float]], second: Sequence[dict[tuple[int, int], float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds of the images that every job explained, in the same order.

    Raises SpecError where there is none.
    """
    shared = sorted(set.intersection(*(set(images) for images in (*first, *second))))
    if not shared:
        raise SpecError("expected explanations of the same images, got different ones: no place has the same label")
    one, other = (np.array([[images[place] for place in shared] for images in some]) for some in (first, second))
    return one.mean(0), other.mean(0)
