"""Explanations as people read them: measures under noise and attacks side by side."""

from collections.abc import Sequence
from typing import Any

from robustlib.checks.thresholds import FAIL
from robustlib.settings import EXPLAIN, EXPLANATION_MEASURES
from robustlib.settings import NO_ATTACK as CLEAN
from robustq.jobs.commands.base import CSV, SPREADSHEET
from robustq.jobs.errors import SpecError
from robustq.jobs.results.explanations.columns import EXPLANATION_COLUMNS, ExplanationRow
from robustq.jobs.results.explanations.rows import asks_of_explanations, explanation_rows
from robustq.jobs.results.explanations.stability import Cell, in_order, method_names, pivot, stability_lines
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.questions import Question
from robustq.jobs.store.connection import Store
from robustq.jobs.text import tables
from robustq.jobs.text.footnotes import under, with_notes
from robustq.jobs.text.notes import note
from robustq.jobs.text.numbers import eps_text
from robustq.jobs.text.tables import Row, json_text

WORDS = {
    "top_intersection": "top-k",
    "near_top_intersection": "near top-k",
    "spearman": "Spearman",
    "ssim": "SSIM",
    "deletion": "deletion",
    "insertion": "insertion",
}
LEAST = ("sweep", "seed", "n", "target")  # what a narrow terminal does without
SIDES = ("first", "second")
HOW = (
    "means over images with 95 % intervals, of maps beside those of the clean images; deletion and insertion are of "
    "each map on its own image; kept are images that still have the explained class"
)
PIVOT = "top-k intersection with the map of the clean image, mean over images and seeds"
TEST = (
    "top-k intersections of the same images, difference is second minus first; p is of Wilcoxon's signed-rank test, "
    "two-sided, p holm by Holm's correction for all tests here; an explanation that failed a check has none"
)


def answer_text(store: Store, question: Question, form: str) -> str:
    """The explanations that a question asks for, in one of tables.FORMATS; every digit in JSON and CSV."""
    if question.group or question.sort or question.best is not None or question.spread:
        raise SpecError("--explanations goes with filters, --pivot and --compare: leave out the other options")
    with store.begin() as db:
        if question.compare is not None:
            from robustq.jobs.results.explanations.compare import compare  # NumPy

            rows: Sequence[Any] = compare(db, question.filters, question.compare)
            told = ("first_why", "second_why", "left_out")
            whys = ["; ".join(str(row[name]) for name in told if row[name]) for row in rows]
            return text_of(rows, list(rows[0]), shown_comparisons(rows), whys, form, TEST)
        found = explanation_rows(db, question.filters, whole=question.pivot)
    asked = {condition.column for group in question.filters.groups for condition in group}
    if not found and "attack" in asked:
        note(f"the attack of all explanations is {EXPLAIN}; what was done to images is asked by --where against=pgd")
    if question.pivot:
        rows = pivot(found)
        shown = [{n: number(v) if isinstance(v, float) else v for n, v in row.items() if n != "why"} for row in rows]
        return text_of(rows, list(rows[0]) if rows else [], shown, [row["why"] for row in rows], form, PIVOT)
    return text_of(found, EXPLANATION_COLUMNS, *shown_lines(found), form, HOW)


def beside(store: Store, filters: Filters, measures: Sequence[str] = EXPLANATION_MEASURES) -> str:
    """The table that stands under one of accuracies; empty where the filters leave no explanation, or ask for what
    explanations do not have.
    """
    if not asks_of_explanations(filters):
        return ""
    with store.begin() as db:
        rows = explanation_rows(db, filters)
    if not rows:
        return ""
    more = "" if len(measures) > 1 else "; robustq results has the other measures"
    return text_of(rows, (), *shown_lines(rows, measures), "table", HOW + more)


def of_sweep(store: Store, sweep_id: int, *, as_json: bool) -> str:
    """All explanations of a sweep: their table, or every digit as JSON."""
    if not as_json:
        return beside(store, Filters(sweep_id))
    with store.begin() as db:
        return json_text(explanation_rows(db, Filters(sweep_id)))


def text_of(
    rows: Sequence[Row], columns: Sequence[str], shown: Sequence[Row], whys: Sequence[str | None], form: str, note: str
) -> str:
    """Rows in one of tables.FORMATS; `shown` for people, each with why it warns or fails, and a note below."""
    if form == "json":
        return json_text(rows)
    if form in CSV:
        return tables.csv_text(rows, columns, spreadsheet=form == SPREADSHEET)
    lines, notes = with_notes(shown, whys)
    if form == "table":
        text = tables.table(lines, least=LEAST)
    else:
        text = {"markdown": tables.markdown, "latex": tables.latex}[form](lines, list(lines[0]) if lines else [])
    return under(text, [*([note] if lines else []), *notes], form)


def shown_lines(
    rows: Sequence[ExplanationRow], measures: Sequence[str] = EXPLANATION_MEASURES
) -> tuple[list[Row], list[str | None]]:
    """A line for each job and measure, and one of the images that keep their class; with why each warns or fails."""
    names = in_order([row["against"] for row in rows])
    disturbed = [name for name in names if name != CLEAN]
    own = [name for name in names if name == CLEAN and {"deletion", "insertion"} & set(measures)]
    both = len({row["target"] for row in rows}) > 1
    shown, whys = list[Row](), list[str | None]()
    lines = stability_lines(rows, measures)
    for place, line in enumerate(lines):
        job = line.job
        head = {name: job[name] for name in ("sweep", "model", "method", *(["target"] if both else []), "norm")}
        head |= {"eps": eps_text(job["eps"]), "seed": job["seed"], "n": job["n"]}
        cells = {name: cell_text(line.cells.get(name), job["verdict"]) for name in (*own, *disturbed)}
        shown.append(head | {"measure": WORDS[line.measure]} | cells | {"checks": job["verdict"]})
        whys.append(job["why"])
        if place + 1 == len(lines) or lines[place + 1].job["job_id"] != job["job_id"]:
            kept = {name: str(line.kept[name]) if name in line.kept else "" for name in (*own, *disturbed)}
            shown.append(head | {"measure": "kept"} | kept | {"checks": job["verdict"]})
            whys.append(job["why"])
    return shown, whys


def cell_text(cell: Cell | None, verdict: str | None) -> str:
    """A mean with its interval, unless a check of the explanation failed."""
    if cell is None:
        return ""
    if verdict == FAIL:
        return f"not trusted ({number(cell.value)})"
    return number(cell.value) if cell.low is None else f"{number(cell.value)} {interval(cell.low, cell.high)}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    return f"[{number(low)}, {number(high)}]"


def shown_comparisons(rows: Sequence[Row]) -> list[Row]:
    """Comparisons as the terminal shows them: no difference where nothing was tested."""
    both = len({row["target"] for row in rows}) > 1
    called = method_names(rows)
    names = ("first", "second", "model", "method", *(["target"] if both else []), "norm")
    return [
        {name: row[name] for name in names if name != "model" or row[name]}
        | {"method": called[row["recipe"]], "eps": eps_text(row["eps"])}
        | ({} if row["against"] is None else {"against": row["against"]})
        | {"seeds": row["seeds"], "n": row["n"]}
        | {f"{side} top-k": mean_text(row, side) for side in SIDES}
        | {
            "difference": difference_text(row),
            "p": row["p"],
            "p holm": row["p_holm"],
        }
        for row in rows
    ]


def mean_text(row: Row, side: str) -> str:
    mean = row[f"{side}_mean"]
    return "" if mean is None else cell_text(Cell(mean, None, None), row[f"{side}_verdict"])


def difference_text(row: Row) -> str:
    if row["p"] is None:
        return ""
    return f"{row['difference']:+.3f} {interval(row['difference_low'], row['difference_high'])}"
