"""Rows put together: means over seeds or groups, a pivot of models by attacks, the best row of each contest."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from robustlib.checks.thresholds import FAIL, VERDICTS
from robustlib.number_text import counted
from robustq.jobs.results.attack_labels import Identity, identity
from robustq.jobs.results.filters import check_columns
from robustq.jobs.text.numbers import eps_text
from robustq.jobs.text.tables import Row

R = TypeVar("R", bound=Row)

# What rows that differ only by their seed agree in.
OVER_SEEDS = ("sweep", "dataset", "model", "attack", "norm", "eps", "recipe", "n")
# What a --pivot agrees in: the first are of its lines, the last of its columns.
LINES, CELLS = ("sweep", "dataset", "model"), ("attack", "norm", "eps")
# Only among rows that agree in these can one be better than another.
CONTEST = ("dataset", "attack", "norm", "eps")
MEANS = ("clean_accuracy", "robust_accuracy", "distance_median", "seconds")
LESS_IS_BETTER = ("seconds",)
CLEAN = "clean"  # the evaluation whose clean accuracy is the model's: see worst_attack.py
SD = " sd"  # ends the name of a pivot's column of standard deviations


class Measures(TypedDict):
    """Means over seeds of a group of rows; None where nothing is known.

    *_sd: standard deviation over seeds, *_se: standard error; low and high: ends of Student's 95 % interval, within
    [0, 1]; None where there is one seed only. total_low and total_high: those of an interval for seeds and images, see
    `seeds_and_images`.  seeds, rows: how many the group has.  why: the reasons for the verdict, which is the worst.
    """

    clean_accuracy: float | None
    clean_accuracy_sd: float | None
    clean_accuracy_se: float | None
    robust_accuracy: float | None
    robust_accuracy_sd: float | None
    robust_accuracy_se: float | None
    robust_accuracy_low: float | None
    robust_accuracy_high: float | None
    robust_accuracy_total_low: float | None
    robust_accuracy_total_high: float | None
    distance_median: float | None
    distance_median_sd: float | None
    seconds: float | None
    seeds: int
    rows: int
    why: str | None
    verdict: str | None


MEASURES = tuple(Measures.__annotations__)


def means_by(rows: Sequence[Row], group: Sequence[str], tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Means over seeds of rows that agree in `group`, in the order in which their first rows come: see `Measures`."""
    if "versions" in group:  # an object, by which nothing can be grouped
        rows = [{**row, "versions": str(row["versions"])} for row in rows]
    found = {key: measures(mine) for key, mine in rows_by(rows, *group).items()}
    mixed = sum(line["rows"] > line["seeds"] for line in found.values())
    if mixed and "seed" not in group:
        hold = counted(mixed, "group holds", "groups hold")
        tell(f"{hold} several rows of a seed, which were averaged: --over-seeds keeps apart what differs")
    return [{**dict(zip(group, key, strict=True)), **line} for key, line in found.items()]


def measures(rows: Sequence[Row]) -> Measures:
    """Rows of one seed are averaged first, so that every seed counts once."""
    from robustq.jobs.statistics.significance import seeds_and_images, standard_deviation, standard_error, t_interval

    seeds = list(rows_by(rows, "seed").values())

    def by_seed(column: str) -> list[float]:
        means = [mean_of(some, column) for some in seeds]
        return [value for value in means if value is not None]

    clean, robust, distance, seconds = map(by_seed, MEANS)
    interval = t_interval(robust)  # no accuracy lies beyond 0 and 1, Student's interval may
    n = min(row["n"] for row in rows)
    total = seeds_and_images(robust, n) if robust and n else (None, None)
    verdict = worst_verdict(rows)
    return Measures(
        clean_accuracy=mean(clean) if clean else None,
        clean_accuracy_sd=standard_deviation(clean),
        clean_accuracy_se=standard_error(clean),
        robust_accuracy=mean(robust) if robust else None,
        robust_accuracy_sd=standard_deviation(robust),
        robust_accuracy_se=standard_error(robust),
        robust_accuracy_low=max(interval[0], 0.0) if interval else None,
        robust_accuracy_high=min(interval[1], 1.0) if interval else None,
        robust_accuracy_total_low=total[0],
        robust_accuracy_total_high=total[1],
        distance_median=mean(distance) if distance else None,
        distance_median_sd=standard_deviation(distance),
        seconds=mean(seconds) if seconds else None,
        seeds=len(seeds),
        rows=len(rows),
        why=why_of([row for row in rows if row["verdict"] == verdict]),
        verdict=verdict,
    )


def worst_verdict(rows: Sequence[Row]) -> str | None:
    return max((row["verdict"] for row in rows if row["verdict"] is not None), key=VERDICTS.index, default=None)


def why_of(rows: Sequence[Row]) -> str | None:
    """The reasons of these rows, each once."""
    words = [one for row in rows for one in (row["why"] or "").split("; ")]
    return "; ".join(dict.fromkeys(filter(None, words))) or None


def rows_by(rows: Iterable[R], *columns: str) -> dict[Any, list[R]]:
    """Rows by what they hold in these columns, each group and the groups in the order of the rows."""
    found: dict[Any, list[R]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_of(rows: Sequence[Row], column: str) -> float | None:
    """The mean of what is known in this column; None where nothing is."""
    values = [row[column] for row in rows if row[column] is not None]
    return mean(values) if values else None


def column_name(attack: str, norm: str | None, eps: float | None) -> str:
    """A pivot's column in words."""
    return " ".join(filter(None, (attack, norm, eps_text(eps))))


def is_best(value: float, top: float) -> bool:
    """Whether a number is the best one but for the rounding of means: those of 80 and 84 and of 82 and 82 are equal."""
    return math.isclose(value, top, rel_tol=1e-12)


def pivot(groups: Sequence[Row], tell: Callable[[str], None], *, spread: bool = False) -> list[Row]:
    """A line a model, a column an attack with its norm and radius; robust accuracy, None where none is to be trusted.

    Sweep and data set stand in front where there are several; the reasons for warnings and failures stand last where
    there are any.  spread: beside each column one with the standard deviation over seeds, None for one seed.
    """
    heads = [name for name in LINES[:2] if len({row[name] for row in groups}) > 1]
    columns: dict[tuple[Any, ...], str] = {}
    for row in groups:
        place = tuple(row[name] for name in CELLS)
        columns.setdefault(place, column_name(*place))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    whys: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    failed_in: dict[tuple[Any, ...], int] = {}
    names = [name + end for name in columns.values() for end in (("", SD) if spread else ("",))]
    for row in groups:
        place = tuple(row[name] for name in LINES)
        head = {name: row[name] for name in (*heads, "model")}
        line = lines.setdefault(place, head | dict.fromkeys(names))
        column = columns[tuple(row[name] for name in CELLS)]
        # Of a randomised model a row's two accuracies on clean images are of other draws.
        accuracy = "clean_accuracy" if row["attack"] == CLEAN else "robust_accuracy"
        line[column] = None if row["verdict"] == FAIL else row[accuracy]
        failed_in[place] = failed_in.get(place, 0) + (row["verdict"] == FAIL)
        if spread:
            line[column + SD] = None if row["verdict"] == FAIL else row[f"{accuracy}_sd"]
        for reason in (row["why"] or "").split("; ") if row["why"] else ():
            whys.setdefault(place, {}).setdefault(f"{row['verdict']}: {reason}", []).append(column)
    if whys:
        for place, line in lines.items():
            there = sum(line[column] is not None for column in columns.values()) + failed_in[place]
            told = [
                f"{reason} ({'everywhere' if len(where) == there else ', '.join(where)})"
                for reason, where in whys.get(place, {}).items()
            ]
            line["why"] = "; ".join(told)
    if failed := sum(row["verdict"] == FAIL for row in groups):
        cells = counted(failed, "cell is", "cells are")
        tell(f"{cells} empty because a check failed there; without --pivot their numbers are shown")
    return list(lines.values())


def best(rows: Sequence[Row], column: str, tell: Callable[[str], None], labels: Mapping[Identity, str]) -> list[Row]:
    """The best of the rows that agree in data set, attack and its settings, norm and radius, as far as they have them;
    all of equals.

    labels: of attacks, with the settings that tell them apart.  What failed a check is not the most robust of anything.
    """
    contests: dict[tuple[Any, ...], list[Row]] = {}
    if column.startswith("robust_accuracy") and (failed := sum(row["verdict"] == FAIL for row in rows)):
        tell(f"{counted(failed, 'row is', 'rows are')} left out because a check failed there")
        rows = [row for row in rows if row["verdict"] != FAIL]
    for row in rows:
        if row[column] is not None:
            place = (labels.get(identity(row)), *(row.get(name) for name in CONTEST))
            contests.setdefault(place, []).append(row)
    choose = min if column in LESS_IS_BETTER else max
    kept = []
    for mine in contests.values():
        top = choose(row[column] for row in mine)
        kept += [row for row in mine if is_best(row[column], top)]
    return kept


def sort(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """By these columns, -COLUMN from the highest; equals stay in order, nulls come last either way."""
    rows = list(rows)
    for name in reversed(columns):
        column, down = name.removeprefix("-"), name.startswith("-")
        if rows:
            check_columns([column], list(rows[0]))
        there = [row for row in rows if row[column] is not None]
        text = any(isinstance(row[column], str | dict) for row in there)
        there.sort(key=lambda row: str(row[column]) if text else row[column], reverse=down)
        rows = there + [row for row in rows if row[column] is None]
    return rows
