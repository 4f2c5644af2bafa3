"""Results, answers and summaries as text."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection

from robustlib.number_text import counted
from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.commands import terminal_rows
from robustq.jobs.commands.base import CSV, SPREADSHEET
from robustq.jobs.commands.explanations_text import beside
from robustq.jobs.commands.terminal_rows import Shown
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.device_time import device_hours
from robustq.jobs.queue.left_out import count_left_out, left_out_words, partial_words
from robustq.jobs.queue.status import counts
from robustq.jobs.results.aggregate import SD
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.filters import Filters, fits
from robustq.jobs.results.questions import Question, answer, columns_of
from robustq.jobs.results.rows import chosen_rows, result_rows, with_details
from robustq.jobs.store.connection import Store
from robustq.jobs.store.sweeps import latest_sweeps, sweep_name
from robustq.jobs.text import tables
from robustq.jobs.text.footnotes import under, with_notes
from robustq.jobs.text.notes import note
from robustq.jobs.text.tables import Row, json_text, table

MOST_CLOSED = 5  # sweeps that the lines after a table tell of

if TYPE_CHECKING:
    from robustq.jobs.results.compare import Comparison


def results_text(store: Store, chosen: int | None, *, as_json: bool, summary: bool = False) -> str:
    """The results of a sweep or of all, as text or JSON; summary: a line a model, as text."""
    with store.begin() as db:
        rows = result_rows(db, chosen)
        if as_json:
            if count := len(explanation_rows(db, Filters(chosen))):
                rows_are = counted(count, "row of explanations is", "rows of explanations are")
                note(f"{rows_are} no results: robustq results --explanations --json has them")
            return json_text(with_details(db, rows))
    if summary and rows:
        return with_explanations(store, summary_text(rows), Filters(chosen), MAIN_MEASURE)
    return with_explanations(store, rows_text(rows, terminal_rows.shown_results(rows), "table"), Filters(chosen))


MAIN_MEASURE = ("top_intersection",)


def with_explanations(store: Store, text: str, filters: Filters, measures: Sequence[str] = EXPLANATION_MEASURES) -> str:
    """A table of accuracies with that of explanations below, or instead where there are no accuracies."""
    found = beside(store, filters, measures)
    return text if not found else found if text == table([]) else f"{text}\n\n{found}"


def both_texts(store: Store, question: Question, tell: Callable[[str], None]) -> str:
    """The rows that filters leave, of accuracies and below them of explanations. Why no accuracy fits is told where no
    explanation does either.
    """
    told: list[str] = []
    text = question_text(store, question, "table", summary=False, tell=told.append)
    whole = with_explanations(store, text, question.filters)
    for line in told if whole.startswith(text) else ():
        tell(line)
    return whole


def question_text(store: Store, question: Question, form: str, *, summary: bool, tell: Callable[[str], None]) -> str:
    """The answer to a question in one of tables.FORMATS: percent for people, every digit in JSON and CSV.

    summary: a line a model instead.  tell: see `answer`.
    """
    with store.begin() as db:
        if summary:
            if not question.plain or form != "table":
                raise SpecError("--summary is a table of its own: leave out the other options on how to show results")
            return summaries_text(db, question.filters)
        if form == "latex" and question.spread:
            return paper_text(db, question, tell)
        rows = answer(db, question, tell)
        rows = with_details(db, rows) if form == "json" and question.plain else rows
    if form in CSV:
        # Its head also where there are no rows.
        return tables.csv_text(rows, columns_of(rows, question), spreadsheet=form == SPREADSHEET)
    return rows_text(rows, shown_rows(rows, question), form, seeds_note(rows, question))


def paper_text(db: Connection, question: Question, tell: Callable[[str], None]) -> str:
    from robustq.jobs.paper.latex import table_text
    from robustq.jobs.paper.paper_table import paper_table

    found = paper_table(db, question, tell)
    return table_text(found) if found is not None else table([])


def seeds_note(rows: Sequence[Row], question: Question) -> str:
    """What ± is, where a table has it."""
    if question.spread and any(row[name] is not None for row in rows for name in row if name.endswith(SD)):
        return terminal_rows.SPREAD.partition(";")[0]
    grouped = bool(question.group) and any(row["seeds"] > 1 for row in rows)
    return terminal_rows.SPREAD if grouped else ""


def why_of(row: Row) -> str | None:
    """Why a row, or either side of a comparison, warns or fails."""
    return "; ".join(filter(None, (row.get(name) for name in ("why", "first_why", "second_why")))) or None


def rows_text(rows: Sequence[Row], shown: Sequence[Row], form: str, note: str = "") -> str:
    """Rows in one of tables.FORMATS: `rows` with every digit for programs, `shown` for people, with why they warn or
    fail, and `note`, below.
    """
    if form == "json":
        return json_text(rows)
    if form in CSV:
        return tables.csv_text(rows, list(rows[0]) if rows else [], spreadsheet=form == SPREADSHEET)
    shown, notes = with_notes(shown, [why_of(row) for row in rows]) if len(shown) == len(rows) else (shown, [])
    if form == "table":
        text = table(shown, least=terminal_rows.LEAST)
    else:
        text = {"markdown": tables.markdown, "latex": tables.latex}[form](shown, list(shown[0]) if shown else [])
    return under(text, [*([note] if note else []), *notes], form)


def shown_rows(rows: Sequence[Row], question: Question) -> list[Shown]:
    """An answer's rows as people read them."""
    if question.compare is not None:
        return terminal_rows.shown_comparisons(cast("Sequence[Comparison]", rows))
    if question.pivot:
        return terminal_rows.shown_pivot(rows)
    if question.group:
        return terminal_rows.shown_groups(rows)
    return terminal_rows.shown_results(cast("Sequence[ResultRow]", rows))


def summaries_text(db: Connection, filters: Filters) -> str:
    """The latest sweep of each name that fits, a line a model."""
    chosen = [name for name in latest_sweeps(db) if filters.sweep is None or fits(name, str(filters.sweep))]
    groups = [chosen_rows(db, replace(filters, sweep=name)) for name in chosen or [filters.sweep]]
    return "\n".join(summary_text(rows) for rows in groups if rows) or table([])


def summary_text(rows: Sequence[ResultRow]) -> str:
    """A sweep's results, a line a model."""
    images = counted(max(row["n"] for row in rows), "image")
    head = f"{rows[0]['sweep']}: accuracy in % on {images}, clean and under the worst of the attacks by radius"
    shown = terminal_rows.shown_summary(rows)
    if not shown:  # of certificates alone
        return f"{head}\n{table(terminal_rows.shown_results(rows), least=terminal_rows.LEAST)}"
    whys = [terminal_rows.summary_why(rows, line["model"]) for line in shown]
    shown, notes = with_notes(shown, whys)
    return f"{head}\n{under(table(shown, least=terminal_rows.LEAST), notes, 'table')}"


def closing_lines(store: Store, chosen: int | str | None) -> str:
    """For each sweep what a budget left out of it, and its device hours; empty where none has run.

    chosen: a sweep's number, a pattern of names, or None for the latest of each name.
    """
    with store.begin() as db:
        if isinstance(chosen, int):
            ids = [chosen]
        else:
            ids = [id_ for name, id_ in latest_sweeps(db).items() if chosen is None or fits(name, chosen)]
        return "\n".join(line for id_ in ids[:MOST_CLOSED] for line in lines_of(db, id_))


def lines_of(db: Connection, sweep_id: int) -> list[str]:
    name, words, found = sweep_name(db, sweep_id), device_hours(db, sweep_id).words, list[str]()
    if left_out := count_left_out(db, sweep_id):
        jobs = sum(counts(db, sweep_id).values())
        found.append(f"{name} is {partial_words(left_out, jobs, shlex.quote(name))}")
        found += left_out_words(db, sweep_id)
    return [*found, f"device hours of {name}: {words}"] if words else found
