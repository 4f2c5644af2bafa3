"""Explanations compared over the same images: of two models, or of a model under two things done to the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from sqlalchemy import Connection

from robustlib.checks.thresholds import FAIL
from robustlib.metrics import CLEAN
from robustlib.names import did_you_mean
from robustq.jobs.errors import SpecError
from robustq.jobs.results.compare import split_of
from robustq.jobs.results.explanations.columns import SAME_EXPLANATION, ExplanationRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.explanations.stability import MAIN
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.statistics.explanation_means import Steadier, explained_images, steadier
from robustq.jobs.statistics.significance import holm
from robustq.jobs.store.explanations.measures import measures_of


class ExplanationComparison(TypedDict):
    """Explanations of the same images on two sides: two models under one thing that was done to the images, or a model
    under two. Each image's measure is the mean over the seeds that both have.

    first, second: the models, or what was done; model, against: what both sides share, None where they differ in it.
    n: images that both explained.  first_mean, second_mean, difference to p: see `Steadier`; p is None where a check of
    one of the explanations failed, which has no test.  p_holm: p by Holm's correction for all tests of the answer.
    verdicts: the worst over the seeds.  left_out: why the two sides cannot be compared, None where they were; then n is
    0, and there are no numbers.
    """

    first: str
    second: str
    model: str | None
    dataset: str
    method: str
    target: str
    norm: str
    eps: float
    recipe: str
    against: str | None
    measure: str
    seeds: int
    n: int
    first_mean: float | None
    second_mean: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p: float | None
    p_holm: float | None
    first_verdict: str | None
    second_verdict: str | None
    first_why: str | None
    second_why: str | None
    left_out: str | None


Jobs = dict[int, ExplanationRow]  # the rows of one condition by seed


def compare(db: Connection, filters: Filters, pair: Sequence[str]) -> list[ExplanationComparison]:
    """A row for each method, norm and radius that both sides have. difference is second minus first: above 0 where the
    second side's explanations are the steadier.

    pair: two models, compared under each thing that was done to the images; or two such things, compared on each model.
    A pair that has no image in common says so in its row.  Raises SpecError where there is nothing to compare.
    """
    rows = explanation_rows(db, filters)
    done, models = ({row[name] for row in rows} for name in ("against", "model"))
    if set(pair) & done and (wrong := [one for one in pair if one not in done | models]):
        raise SpecError(
            f"--compare: nothing that was done to images is called {wrong[0]!r}, there are: "
            f"{', '.join(sorted(done))}{did_you_mean(wrong[0], done)}"
        )
    matches = (match_done if set(pair) <= done else match_models)(db, filters, pair)
    found = [compared(db, first, second) for first, second in matches]
    if found[0]["left_out"] is not None and all(row["left_out"] for row in found):
        raise SpecError(found[0]["left_out"])
    return corrected(found)


def corrected(rows: Sequence[ExplanationComparison]) -> list[ExplanationComparison]:
    """The rows with Holm's correction over the tests that were made, and no others."""
    values = iter(holm([p for row in rows if (p := row["p"]) is not None]))
    return [{**row, "p_holm": None if row["p"] is None else next(values)} for row in rows]


def match_models(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[Jobs, Jobs]]:
    first, second = (conditions_of(db, filters, model) for model in pair)
    both = [place for place in first if place in second and set(first[place]) & set(second[place])]
    if not both:
        raise SpecError(
            f"--compare: {pair[0]!r} and {pair[1]!r} have no explanation with the same method, parameters and seed"
        )
    return [(first[place], second[place]) for place in both]


def match_done(db: Connection, filters: Filters, pair: Sequence[str]) -> list[tuple[Jobs, Jobs]]:
    """The two sides of each model, method, norm and radius: rows of the same jobs."""
    rows = [row for row in explanation_rows(db, filters) if row["against"] in pair and row["against"] != CLEAN]
    sides: dict[tuple[Any, ...], dict[str, Jobs]] = {}
    for row in rows:
        place = (row["model"], *(row[name] for name in SAME_EXPLANATION))
        sides.setdefault(place, {}).setdefault(row["against"], {})[row["seed"]] = row
    both = [(found[pair[0]], found[pair[1]]) for found in sides.values() if set(pair) <= set(found)]
    both = [(one, other) for one, other in both if set(one) & set(other)]
    if not both:
        raise SpecError(f"--compare: no explanation has both {pair[0]} and {pair[1]}")
    return both


def conditions_of(db: Connection, filters: Filters, model: str) -> dict[tuple[Any, ...], Jobs]:
    """The model's rows by condition and seed, the latest of each."""
    rows = explanation_rows(db, filters.narrowed(make_filters(None, {"model": model})))
    if not rows:
        there = sorted({row["model"] for row in explanation_rows(db, filters)})
        raise SpecError(f"--compare: no explanation is of model {model!r}{did_you_mean(model, there)}")
    found: dict[tuple[Any, ...], Jobs] = {}
    for row in rows:
        if row["against"] != CLEAN:
            place = tuple(row[name] for name in (*SAME_EXPLANATION, "against"))
            found.setdefault(place, {})[row["seed"]] = row
    return found


@dataclass(frozen=True)
class Tested:
    """Two sides of an explanation on the same images. seeds: that both have."""

    seeds: int
    told: Steadier


def tested(db: Connection, first: Jobs, second: Jobs) -> Tested:
    """The test of two sides that have a seed in common. Raises SpecError where they have no image in common, or the
    store lost the images' numbers.
    """
    seeds = sorted(first.keys() & second.keys())
    one, other = ([jobs[seed] for seed in seeds] for jobs in (first, second))
    if len(splits := {split_of(db, row["job_id"]) for row in (*one, *other)}) > 1:
        raise SpecError(f"expected explanations of the same images, got some of {' and some of '.join(sorted(splits))}")
    told = steadier(*in_common([by_image(db, row) for row in one], [by_image(db, row) for row in other]))
    return Tested(len(seeds), told)


def compared(db: Connection, first: Jobs, second: Jobs) -> ExplanationComparison:
    """A row of the answer, before Holm's correction. An explanation that failed a check has no test."""
    seeds = sorted(first.keys() & second.keys())
    one, other = ([jobs[seed] for seed in seeds] for jobs in (first, second))
    told, left_out = None, None
    try:
        told = tested(db, first, second).told
    except SpecError as error:
        left_out = str(error)
    row, beside = one[0], other[0]
    done = row["model"] == beside["model"]
    worst = [worst_of(rows) for rows in (one, other)]
    trusted = all(side["verdict"] != FAIL for side in worst)
    return ExplanationComparison(
        first=row["against"] if done else row["model"],
        second=beside["against"] if done else beside["model"],
        model=row["model"] if done else None,
        dataset=row["dataset"],
        method=row["method"],
        target=row["target"],
        norm=row["norm"],
        eps=row["eps"],
        recipe=row["recipe"],
        against=None if done else row["against"],
        measure=MAIN,
        seeds=len(seeds),
        n=0 if told is None else told.n,
        first_mean=None if told is None else told.first,
        second_mean=None if told is None else told.second,
        difference=None if told is None else told.difference,
        difference_low=None if told is None else told.low,
        difference_high=None if told is None else told.high,
        p=told.p if told is not None and trusted else None,
        p_holm=None,  # of the answer's tests together
        first_verdict=worst[0]["verdict"],
        second_verdict=worst[1]["verdict"],
        first_why=worst[0]["why"],
        second_why=worst[1]["why"],
        left_out=left_out,
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
        raise SpecError(
            "expected images that were explained on both sides and have the same labels, got none: with target true "
            "those are explained that the model classifies correctly"
        )
    one, other = (np.array([[images[place] for place in shared] for images in some]) for some in (first, second))
    return one.mean(0), other.mean(0)
