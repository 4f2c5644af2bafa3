"""The changes of explanations between two stores, or two versions in one: each map's measures, image by image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from sqlalchemy import Connection, select

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.errors import SpecError
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.rows import asks_of_explanations, explanation_rows
from robustq.jobs.results.explanations.stability import MAIN
from robustq.jobs.statistics.significance import t_interval
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.explanations.measures import measures_of
from robustq.jobs.store.schema import result
from robustq.jobs.verification.diff import CHANGED, ONLY_NEW, ONLY_OLD, ORDER, SAME, WITHIN, Side
from robustq.jobs.verification.replayed_explanations import differing_images, moved_measures

# What two explanations agree in that are the same but for what came out; the number of examples belongs to it.
IDENTITY = ("dataset", "model", "recipe", "norm", "eps", "seed", "against")

Columns = Mapping[str, np.ndarray]


class ExplanationChange(TypedDict):
    """An explanation in two stores, under one thing that was done to the images. change: as in `Change` of diff.py.

    images_that_differ: in any measure, check or class; None where a store lost the images' numbers, or they are not the
    same images.  moved: the measures whose means changed beyond their intervals, joined by commas.  old_*, new_*: top-k
    intersection and images that kept their class.  difference: of the intersections, new minus old, with its 95 %
    interval over the images.
    """

    change: str
    dataset: str
    model: str
    method: str
    target: str
    recipe: str
    norm: str
    eps: float
    seed: int
    against: str
    examples: int
    images_that_differ: int | None
    moved: str
    old_top_intersection: float | None
    new_top_intersection: float | None
    old_kept: int | None
    new_kept: int | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    old_job_id: int | None
    new_job_id: int | None


@dataclass(frozen=True)
class Judgement:
    """What became of an explanation; fields as in `ExplanationChange`."""

    change: str
    images: int | None = None
    moved: tuple[str, ...] = ()
    difference: float | None = None
    interval: tuple[float, float] | None = None


def diff_explanations(old: Side, new: Side) -> list[ExplanationChange]:
    """All explanations of both sides, a row for each thing that was done to the images, with what became of it.

    same: equal to the bit in every image. changed: the mean of a measure moved beyond the 95 % interval of its changes,
    image by image; where a store lost these, the two intervals of a mean do not meet. within: anything else.
    Empty where neither side has any, or the options ask for what explanations do not have.
    """
    before, after = by_identity(old), by_identity(new)
    found = [
        change_of(old, new, place, before.get(place), after.get(place)) for place in dict.fromkeys((*before, *after))
    ]
    return sorted(found, key=lambda row: ORDER.index(row["change"]))


def by_identity(side: Side) -> dict[tuple[Any, ...], ExplanationRow]:
    """The latest row of each explanation."""
    rows = explanation_rows(side.db, side.filters) if asks_of_explanations(side.filters) else []
    examples = examples_of(side.db, rows)
    return {(*(row[name] for name in IDENTITY), examples[row["job_id"]]): row for row in rows}


def examples_of(db: Connection, rows: list[ExplanationRow]) -> dict[int, int]:
    """How many images each job looked at, explained or not."""
    found: dict[int, int] = {}
    for some in chunks(list(dict.fromkeys(row["job_id"] for row in rows))):
        query = select(result.c.job_id, result.c.n).where(result.c.job_id.in_(some))
        found |= {number: n for number, n in db.execute(query).all()}
    return found


def change_of(
    old: Side, new: Side, place: tuple[Any, ...], before: ExplanationRow | None, after: ExplanationRow | None
) -> ExplanationChange:
    """One explanation, before and after."""
    known = before or after
    assert known is not None
    if before is None or after is None:
        found = Judgement(ONLY_NEW if before is None else ONLY_OLD)
    else:
        found = judge(before, after, images_of(old.db, before), images_of(new.db, after))
    low, high = found.interval or (None, None)
    return ExplanationChange(
        change=found.change,
        dataset=known["dataset"],
        model=known["model"],
        method=known["method"],
        target=known["target"],
        recipe=known["recipe"],
        norm=known["norm"],
        eps=known["eps"],
        seed=known["seed"],
        against=known["against"],
        examples=place[-1],
        images_that_differ=found.images,
        moved=", ".join(found.moved),
        old_top_intersection=None if before is None else before[MAIN],
        new_top_intersection=None if after is None else after[MAIN],
        old_kept=None if before is None else before["kept"],
        new_kept=None if after is None else after["kept"],
        difference=found.difference,
        difference_low=low,
        difference_high=high,
        old_job_id=None if before is None else before["job_id"],
        new_job_id=None if after is None else after["job_id"],
    )


def images_of(db: Connection, row: ExplanationRow) -> Columns | None:
    """What the row's job stored of each image under what was done; None where the store lost it."""
    try:
        columns = measures_of(db, row["job_id"])
    except SpecError:
        return None
    mine = columns["against"] == row["against"]
    return {name: values[mine] for name, values in columns.items()}


def judge(before: ExplanationRow, after: ExplanationRow, old: Columns | None, new: Columns | None) -> Judgement:
    if old is None or new is None or not all(np.array_equal(old[name], new[name]) for name in ("index", "label")):
        return judge_means(before, after)
    images = differing_images(old, new)
    if not images:
        return Judgement(SAME, 0, difference=None if before[MAIN] is None else 0.0)
    moved, changes = tuple(moved_measures(old, new)), new[MAIN] - old[MAIN]
    changes = changes[~np.isnan(changes)]
    difference = float(changes.mean()) if len(changes) else None
    return Judgement(CHANGED if moved else WITHIN, images, moved, difference, t_interval(changes))


def judge_means(before: ExplanationRow, after: ExplanationRow) -> Judgement:
    """From the two rows alone: whether their intervals of a mean meet."""
    one, other = dict(before), dict(after)
    ends = [f"{name}{end}" for name in EXPLANATION_MEASURES for end in ("", "_low", "_high")]
    if all(one[name] == other[name] for name in (*ends, "n", "kept")):
        return Judgement(SAME)
    apart = tuple(name for name in EXPLANATION_MEASURES if intervals_apart(one, other, name))
    return Judgement(CHANGED if apart else WITHIN, None, apart)


def intervals_apart(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    (low, high), (other_low, other_high) = ([row[f"{name}_{end}"] for end in ("low", "high")] for row in (one, other))
    if None in (low, high, other_low, other_high):
        return False
    return low > other_high or other_low > high
