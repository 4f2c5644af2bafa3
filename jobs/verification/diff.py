"""The changes between two stores, or between two versions in one: row by row, beyond their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from sqlalchemy import Connection, select

from robustlib.number_text import counted
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.statistics.significance import paired, t_interval
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.schema import example_blob

# What a row says of what was measured; two rows that agree in it are the same measurement.
IDENTITY = ("dataset", "model", "attack", "recipe", "norm", "eps", "seed", "n")
MEASURED = ("clean_accuracy", "robust_accuracy", "any_draw_accuracy", "distance_median", "distance_mean")
INTERVALS = tuple(f"{name}_{end}" for name in ("clean_accuracy", "robust_accuracy") for end in ("low", "high"))
READ_COLUMNS = (*IDENTITY, *MEASURED, *INTERVALS, "job_id")
# A shift of the mean distance that is smaller than this share of it is nobody's finding, however sure.
DISTANCE_SHARE = 1e-3
CHANGED, WITHIN, SAME, ONLY_OLD, ONLY_NEW = "changed", "within", "same", "only old", "only new"
ORDER = (CHANGED, WITHIN, ONLY_OLD, ONLY_NEW, SAME)  # in which rows are shown


class Change(TypedDict):
    """A measurement in two stores. change: CHANGED, WITHIN, SAME, ONLY_OLD or ONLY_NEW.

    Accuracies are fractions; difference is new minus old, with its 95 % interval where examples were paired.
    """

    change: str
    dataset: str
    model: str
    attack: str
    recipe: str
    norm: str | None
    eps: float | None
    seed: int
    n: int
    old_clean_accuracy: float | None
    old_robust_accuracy: float | None
    old_distance_mean: float | None
    new_clean_accuracy: float | None
    new_robust_accuracy: float | None
    new_distance_mean: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    p_exact: float | None
    old_job_id: int | None
    new_job_id: int | None


@dataclass(frozen=True)
class Judgement:
    """What became of a measurement; the rest as in `Change`."""

    change: str
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_exact: float | None = None


@dataclass(frozen=True)
class Side:
    """Where rows come from: an open store, and which of its rows."""

    db: Connection
    filters: Filters


def of_version(filters: Filters, name: str, value: str) -> Filters:
    """Only rows that were made with this version of python, torch, numpy, robustq or the kernel."""
    return filters.narrowed(make_filters(None, {}, [f"versions.{name}={value}"]))


def diff(old: Side, new: Side) -> list[Change]:
    """All rows of both sides with what became of each: changed, within, same, only old or only new.

    changed: an accuracy differs beyond its interval. Where both stores hold the outcomes of the examples, that is the
    interval of the paired difference; elsewhere both rows' own intervals, which must not meet. For attacks without a
    radius the distances of images that both found count too. within: numbers or outcomes differ, but not beyond.
    """
    before, after = rows_by_identity(old), rows_by_identity(new)
    found = [change_of(old, new, before.get(place), after.get(place)) for place in dict.fromkeys((*before, *after))]
    return sorted(found, key=lambda row: ORDER.index(row["change"]))


def rows_by_identity(side: Side) -> dict[tuple[Any, ...], ResultRow]:
    """The latest row of each measurement."""
    return {tuple(row[name] for name in IDENTITY): row for row in chosen_rows(side.db, side.filters, READ_COLUMNS)}


def change_of(old: Side, new: Side, before: ResultRow | None, after: ResultRow | None) -> Change:
    """One measurement, before and after."""
    known = before or after
    assert known is not None
    if before is None or after is None:
        found = Judgement(ONLY_NEW if before is None else ONLY_OLD)
    else:
        found = judge(before, after, blob(old.db, before), blob(new.db, after))
    return Change(
        change=found.change,
        dataset=known["dataset"],
        model=known["model"],
        attack=known["attack"],
        recipe=known["recipe"],
        norm=known["norm"],
        eps=known["eps"],
        seed=known["seed"],
        n=known["n"],
        old_clean_accuracy=None if before is None else before["clean_accuracy"],
        old_robust_accuracy=None if before is None else before["robust_accuracy"],
        old_distance_mean=None if before is None else before["distance_mean"],
        new_clean_accuracy=None if after is None else after["clean_accuracy"],
        new_robust_accuracy=None if after is None else after["robust_accuracy"],
        new_distance_mean=None if after is None else after["distance_mean"],
        difference=found.difference,
        difference_low=found.difference_low,
        difference_high=found.difference_high,
        p_exact=found.p_exact,
        old_job_id=None if before is None else before["job_id"],
        new_job_id=None if after is None else after["job_id"],
    )


def blob(db: Connection, row: ResultRow) -> tuple[str, bytes] | None:
    """Hash and bytes of the outcomes, where the store has them."""
    chosen = select(example_blob.c.sha256, example_blob.c.data).where(example_blob.c.job_id == row["job_id"])
    found = db.execute(chosen).first()
    return None if found is None else (found.sha256, found.data)


def judge(
    before: ResultRow, after: ResultRow, old: tuple[str, bytes] | None, new: tuple[str, bytes] | None
) -> Judgement:
    same_numbers = all(before[name] == after[name] for name in MEASURED)
    if old is None or new is None:
        change = SAME if same_numbers else CHANGED if intervals_apart(before, after) else WITHIN
        return Judgement(change, after["robust_accuracy"] - before["robust_accuracy"])
    if same_numbers and old[0] == new[0]:
        return Judgement(SAME, 0.0)
    one, other = (example_outcomes.to_columns(example_outcomes.decode(data)) for _, data in (old, new))
    if not all(np.array_equal(one[name], other[name]) for name in ("index", "label")):
        # Other images under the same name: nothing is paired.
        return judge(before, after, None, None)
    if same_numbers and equal(one, other):
        return Judgement(SAME, 0.0)
    return judge_examples(one, other, distances=before["eps"] is None)


def judge_examples(one: dict[str, np.ndarray], other: dict[str, np.ndarray], *, distances: bool) -> Judgement:
    """What became of two outcomes of the same examples, in the same order; distances: whether these count too."""
    robust = paired(one["adversarial_correct"], other["adversarial_correct"])
    clean = paired(one["clean_correct"], other["clean_correct"])
    beyond = robust.beyond or clean.beyond or (distances and distances_differ(one, other))
    return Judgement(CHANGED if beyond else WITHIN, robust.difference, robust.low, robust.high, robust.p_exact)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two outcomes agree in every bit that they both tell; no distance is equal to no distance."""
    for name, values in one.items():
        counted = name in example_outcomes.COUNTED  # which once were not
        told = not counted or ((values >= 0).any() and (other[name] >= 0).any())
        if told and not np.array_equal(values, other[name], equal_nan=values.dtype.kind == "f"):
            return False
    return True


def intervals_apart(before: ResultRow, after: ResultRow) -> bool:
    """Whether the two rows' own intervals of an accuracy do not meet."""
    return (
        before["clean_accuracy_low"] > after["clean_accuracy_high"]
        or after["clean_accuracy_low"] > before["clean_accuracy_high"]
        or before["robust_accuracy_low"] > after["robust_accuracy_high"]
        or after["robust_accuracy_low"] > before["robust_accuracy_high"]
    )


def distances_differ(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether the mean distance, of images that both found and that needed an attack, moved beyond its interval."""
    found = one["success"] & other["success"] & (one["distance"] > 0) & (other["distance"] > 0)
    moved = (other["distance"] - one["distance"])[found].astype(np.float64)
    interval = t_interval(moved)
    if interval is None or abs(moved.mean()) < DISTANCE_SHARE * one["distance"][found].mean():
        return False
    return interval[0] > 0 or interval[1] < 0


def changes_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows changed, in one line."""
    words = {
        CHANGED: ("changed beyond its interval", "changed beyond their interval"),
        WITHIN: ("differs within it", "differ within it"),
        SAME: ("is the same", "are the same"),
        ONLY_OLD: ("is only in the old", "are only in the old"),
        ONLY_NEW: ("is only in the new", "are only in the new"),
    }
    numbers = {change: sum(row["change"] == change for row in rows) for change in words}
    return ", ".join(counted(n, *words[change]) for change, n in numbers.items() if n)
