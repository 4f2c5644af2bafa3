"""The table of a paper: models by attacks, means over seeds, the best of each column, and the protocol behind it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from robustlib.checks.thresholds import FAIL
from robustq.jobs.results.aggregate import (
    CELLS,
    CLEAN,
    LINES,
    SD,
    Measures,
    column_name,
    is_best,
    measures,
    rows_by,
    sort,
)
from robustq.jobs.results.attack_labels import WORST_CASE, stored_settings
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.compare import seen
from robustq.jobs.results.hints import unfitting
from robustq.jobs.results.questions import Question, whole_rows, with_labels
from robustq.jobs.results.worst_attack import clean_rows
from robustq.jobs.statistics.model_pairs import ALPHA, against_best

PLACE = ""  # beside a line's numbers, by their names, what it is in the table
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """A model under an attack.  found: means over seeds, with why they are not trusted where they are not.

    best: whether no other of its column has more.  alike: whether the test does not tell it apart from the best.
    """

    found: Measures
    best: bool = False
    alike: bool = False


@dataclass(frozen=True)
class PaperTable:
    """columns: attack, norm and radius, the clean images first.  lines: each model's heads and cells, None where
    nothing was evaluated.  heads: what stands before the cells.  tests: by which the columns' models were compared.

    recipes: of each attack its settings.  dataset to versions: what the numbers were made with; each once.
    """

    heads: tuple[str, ...]
    columns: list[Place]
    lines: list[tuple[tuple[str, ...], list[Cell | None]]]
    tests: list[str]
    recipes: dict[Place, str]
    datasets: list[str]
    n: list[int]
    seeds: list[int]
    versions: list[dict[str, str]]


READ = (*LINES, *CELLS, "clean_accuracy", "versions")


def paper_table(db: Connection, question: Question, tell: Callable[[str], None]) -> PaperTable | None:
    """The table of the rows that the question's filters leave, as it sorts them; None where they leave none.

    tell: is given what a reader ought to know besides.  Raises SpecError for a sorting by a column that is not there.
    """
    read = whole_rows(db, question.filters, READ, tell)
    if not read:
        for line in unfitting(db, question.filters):
            tell(line)
        return None
    rows = with_labels(read, partial(stored_settings, db))
    heads = tuple(name for name in LINES[:2] if len({row[name] for row in rows}) > 1)
    heads = (*heads, "model")
    places = {tuple(row[name] for name in CELLS): None for row in rows}
    columns: list[Place] = [(CLEAN, None, None), *(place for place in places if place[0] != CLEAN)]
    lines = rows_by(rows, *LINES)
    cells: dict[Place, list[Cell | None]] = {key: [] for key in lines}
    tests: dict[str, None] = {}
    for column in columns:
        here = {key: of_column(mine, column) for key, mine in lines.items()}
        for key, cell in ranked(db, {k: v for k, v in here.items() if v}, column[0] == CLEAN, tests).items():
            cells[key].append(cell)
        for key in lines:
            if not here[key]:
                cells[key].append(None)
    found = [
        {name: mine[0][name] for name in heads} | numbers_of(columns, cells[key]) | {PLACE: key}
        for key, mine in lines.items()
    ]
    return PaperTable(
        heads=heads,
        columns=columns,
        lines=[(tuple(str(row[name]) for name in heads), cells[row[PLACE]]) for row in sort(found, question.sort)],
        tests=list(tests),
        recipes={tuple(row[name] for name in CELLS): row["recipe"] for row in rows if row["attack"] != CLEAN},
        datasets=list(dict.fromkeys(row["dataset"] for row in rows)),
        n=sorted({row["n"] for row in rows}),
        seeds=sorted({row["seed"] for row in rows}),
        versions=list({str(row["versions"]): row["versions"] for row in rows}.values()),
    )


def numbers_of(columns: Sequence[Place], cells: Sequence[Cell | None]) -> dict[str, float | None]:
    """A line's numbers by the names that a pivot has for them; None where none is to be trusted."""
    found: dict[str, float | None] = {}
    for column, cell in zip(columns, cells, strict=True):
        shown = None if cell is None or cell.found["verdict"] == FAIL else cell.found
        found[column_name(*column)] = shown and shown["robust_accuracy"]
        found[column_name(*column) + SD] = shown and shown["robust_accuracy_sd"]
    return found


def of_column(rows: Sequence[ResultRow], column: Place) -> list[ResultRow]:
    """A model's rows of one column; of the clean images one row a seed: see worst_attack.py."""
    if column[0] != CLEAN:
        return [row for row in rows if tuple(row[name] for name in CELLS) == column]
    return [{**row, "robust_accuracy": row["clean_accuracy"], "verdict": None, "why": None} for row in clean_rows(rows)]


def ranked(
    db: Connection, here: dict[Place, list[ResultRow]], clean: bool, tests: dict[str, None]
) -> dict[Place, Cell]:
    """The cells of a column, with the best among those that are trusted, and what is not told apart from it.

    tests: is given the tests that were used.
    """
    found = {key: measures(rows) for key, rows in here.items()}
    trusted = {k: one["robust_accuracy"] for k, one in found.items() if one["verdict"] != FAIL}
    top = max((value for value in trusted.values() if value is not None), default=None)
    bests = [key for key, value in trusted.items() if value is not None and top is not None and is_best(value, top)]
    cells = {key: Cell(one, best=key in bests) for key, one in found.items()}
    others = [key for key in trusted if key not in bests]
    if not bests or not others or any(len(rows) > len({row["seed"] for row in rows}) for rows in here.values()):
        return cells
    column = "clean_correct" if clean else "adversarial_correct"
    outcomes = {key: [seen(db, row, column) for row in here[key]] for key in (bests[0], *others)}
    for key, (one, p) in zip(others, against_best(outcomes[bests[0]], [outcomes[k] for k in others]), strict=True):
        tests[re.sub(r"\d+ (?=images)", "", one.test)] = None
        cells[key] = Cell(found[key], alike=p >= ALPHA)
    return cells


def is_attack(column: Place) -> bool:
    """Whether a column has settings to be told of: a worst case has those of the others."""
    return column[0] not in (CLEAN, WORST_CASE)
