"""Explanations side by side: a line a measure, a cell for each thing that was done to the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.results.aggregate import column_name, mean, rows_by
from robustq.jobs.results.explanations.columns import ExplanationRow, place_of
from robustq.jobs.text.tables import Row

JOB = ("sweep", "model", "method", "target", "norm", "eps", "seed", "n", "verdict", "why", "job_id")
MAIN = "top_intersection"  # the measure that pivots show and that models are compared by


@dataclass(frozen=True)
class Cell:
    """A mean over images with its 95 % interval; None for an interval of one image."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Line:
    """One measure of one job. job: the columns JOB.  cells, kept: by `against`; kept are, of n images, those that still
    have the explained class.
    """

    job: Row
    measure: str
    cells: dict[str, Cell]
    kept: dict[str, int]


def method_names(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each recipe is called in a table: its method, with its options where there are several of that method, and
    the recipe where these do not tell them apart. The explained class has a column of its own.
    """
    recipes = {row["recipe"]: row["method"] for row in rows}
    whole = {recipe: recipe.partition(", target=")[0] for recipe in recipes}
    short = {recipe: recipe.partition(" under ")[0] for recipe in recipes}
    names: dict[str, str] = {}
    for recipe, method in recipes.items():
        alike = {whole[other]: short[other] for other, name in recipes.items() if name == method}
        several = list(alike.values()).count(short[recipe]) > 1
        names[recipe] = method if len(alike) == 1 else whole[recipe] if several else short[recipe]
    return names


def stability_lines(rows: Sequence[ExplanationRow], measures: Sequence[str] = EXPLANATION_MEASURES) -> list[Line]:
    """A line for each job and measure. rows: of `explanation_rows`; what was done keeps their order."""
    found, names = [], method_names(rows)
    for mine in rows_by(rows, "sweep", "job_id").values():
        job = {name: mine[0][name] for name in JOB} | {"method": names[mine[0]["recipe"]]}
        kept = {row["against"]: row["kept"] for row in mine}
        for measure in measures:
            cells = {row["against"]: cell_of(row, measure) for row in mine}
            there = {against: cell for against, cell in cells.items() if cell is not None}
            found.append(Line(job, measure, there, kept))
    return found


def cell_of(row: ExplanationRow, measure: str) -> Cell | None:
    value, low, high = (cast("Any", row)[f"{measure}{end}"] for end in ("", "_low", "_high"))
    return None if value is None else Cell(value, low, high)


def in_order(names: Sequence[str]) -> list[str]:
    """What was done to images, each once, noise first among what disturbs them."""
    return sorted(set(names), key=place_of)


def pivot(rows: Sequence[ExplanationRow]) -> list[Row]:
    """A line a model and method, a column for each thing done to the images, of its norm and radius.

    Top-k intersections, means over seeds; None where a check of the explanation failed for one of these, with the
    reasons last.
    """
    called = method_names(rows)
    rows = [{**row, "method": called[row["recipe"]]} for row in rows if row[MAIN] is not None]
    heads = [name for name in ("sweep", "dataset") if len({row[name] for row in rows}) > 1] + ["model", "method"]
    heads += ["target"] if len({row["target"] for row in rows}) > 1 else []
    places = sorted({(row["norm"], row["eps"], place_of(row["against"])) for row in rows})
    names = {(norm, eps, place[1]): column_name(place[1], norm, eps) for norm, eps, place in places}
    found = []
    for key, mine in rows_by(rows, *heads).items():
        line: dict[str, Any] = dict(zip(heads, key, strict=True)) | dict.fromkeys(names.values())
        for place, cell in rows_by(mine, "norm", "eps", "against").items():
            values = [row[MAIN] for row in cell if row["verdict"] != "fail"]
            if len(values) == len(cell):
                line[names[place]] = mean([value for value in values if value is not None])
        failed = [row["why"] for row in mine if row["verdict"] == "fail" and row["why"]]
        found.append(line | {"why": "; ".join(dict.fromkeys(failed)) or None})
    return found
