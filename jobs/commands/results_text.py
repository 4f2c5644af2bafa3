"""Results, answers and summaries as text."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from sqlalchemy import Connection

from robustq.jobs.commands import terminal_rows
from robustq.jobs.commands.base import CSV, SPREADSHEET
from robustq.jobs.commands.terminal_rows import Shown
from robustq.jobs.errors import SpecError
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Filters, fits
from robustq.jobs.results.questions import Question, answer, columns_of
from robustq.jobs.results.rows import chosen_rows, result_rows, with_details
from robustq.jobs.store.connection import Store
from robustq.jobs.store.sweeps import latest_sweeps
from robustq.jobs.text import tables
from robustq.jobs.text.tables import Row, json_text, table

if TYPE_CHECKING:
    from robustq.jobs.results.compare import Comparison


def results_text(store: Store, chosen: int | None, *, as_json: bool, summary: bool = False) -> str:
    """The results of a sweep or of all, as text or JSON; summary: a line a model, as text."""
    with store.begin() as db:
        rows = result_rows(db, chosen)
        if as_json:
            return json_text(with_details(db, rows))
    if summary and rows:
        return summary_text(rows)
    return table(terminal_rows.shown_results(rows), least=terminal_rows.LEAST)


def question_text(store: Store, question: Question, form: str, *, summary: bool, tell: Callable[[str], None]) -> str:
    """The answer to a question in one of tables.FORMATS: percent for people, every digit in JSON and CSV.

    summary: a line a model instead.  tell: see `answer`.
    """
    with store.begin() as db:
        if summary:
            if not question.plain or form != "table":
                raise SpecError("--summary is a table of its own: leave out the other options on how to show results")
            return summaries_text(db, question.filters)
        rows = answer(db, question, tell)
        rows = with_details(db, rows) if form == "json" and question.plain else rows
    if form in CSV:
        # Its head also where there are no rows.
        return tables.csv_text(rows, columns_of(rows, question), spreadsheet=form == SPREADSHEET)
    return rows_text(rows, shown_rows(rows, question), form)


def rows_text(rows: Sequence[Row], shown: Sequence[Row], form: str) -> str:
    """Rows in one of tables.FORMATS: `rows` with every digit for programs, `shown` for people."""
    if form == "json":
        return json_text(rows)
    if form in CSV:
        return tables.csv_text(rows, list(rows[0]) if rows else [], spreadsheet=form == SPREADSHEET)
    if form == "table":
        return table(shown, least=terminal_rows.LEAST)
    return {"markdown": tables.markdown, "latex": tables.latex}[form](shown, list(shown[0]) if shown else [])


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
    n = max(row["n"] for row in rows)
    head = f"{rows[0]['sweep']}: accuracy in % on {n} images, clean and under the worst of the attacks by radius"
    shown = terminal_rows.shown_summary(rows) or terminal_rows.shown_results(rows)  # the latter of certificates alone
    return f"{head}\n{table(shown, least=terminal_rows.LEAST)}"
