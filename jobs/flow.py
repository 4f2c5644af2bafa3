"""What the commands do that read the store or change its queue, one function each."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from jobs import show, tables
from jobs.answers import Question, answer, columns_of
from jobs.console import CSV, SPREADSHEET
from jobs.engine import Store, open_store
from jobs.errors import JobsFailed, SpecError
from jobs.filters import Filters, chosen_rows, fits
from jobs.query import result_rows, with_details
from jobs.states import (
    any_unfinished,
    counts,
    failures,
    find_sweep,
    job_log,
    jobs_of,
    latest_sweeps,
    running,
    sweep_name,
    sweeps,
)


def sweep_id(store: Store, name: str | None) -> int | None:
    """The latest sweep of this name, None for no name."""
    with store.begin() as db:
        return find_sweep(db, name)


def results_text(store: Store, chosen: int | None, *, as_json: bool, summary: bool = False) -> str:
    """The results of a sweep or of all, as text or JSON; summary: a line a model, as text."""
    with store.begin() as db:
        rows = result_rows(db, chosen)
        if as_json:
            return show.json_text(with_details(db, rows))
    if summary and rows:
        return summary_text(rows)
    return show.table(show.result_rows(rows), least=show.LEAST)


def answer_text(store: Store, question: Question, form: str, *, summary: bool, tell: Callable[[str], None]) -> str:
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


def rows_text(rows: list[dict[str, Any]], shown: list[dict[str, Any]], form: str) -> str:
    """Rows in one of tables.FORMATS: `rows` with every digit for programs, `shown` for people."""
    if form == "json":
        return show.json_text(rows)
    if form in CSV:
        return tables.csv_text(rows, list(rows[0]) if rows else [], spreadsheet=form == SPREADSHEET)
    if form == "table":
        return show.table(shown, least=show.LEAST)
    return {"markdown": tables.markdown, "latex": tables.latex}[form](shown, list(shown[0]) if shown else [])


def shown_rows(rows: list[dict[str, Any]], question: Question) -> list[dict[str, Any]]:
    """An answer's rows as people read them."""
    if question.compare is not None:
        return show.compare_rows(rows)
    if question.pivot:
        return show.pivot_rows(rows)
    return show.group_rows(rows) if question.group else show.result_rows(rows)


def diff_rows(url: str, old: str, new: str, versions: str | None, filters: Filters) -> list[dict[str, Any]]:
    """What changed between two stores, or with `versions` between the rows of two versions in the store `url`."""
    from jobs.diff import Side, diff, of_version

    if versions is not None:
        with open_store(url).begin() as db:
            return diff(*(Side(db, of_version(filters, versions, value)) for value in (old, new)))
    with open_store(old).begin() as one, open_store(new).begin() as other:
        return diff(Side(one, filters), Side(other, filters))


def diff_text(rows: list[dict[str, Any]], form: str) -> str:
    return rows_text(rows, show.diff_rows(rows), form)


def replay_text(rows: list[dict[str, Any]], form: str) -> str:
    return rows_text(rows, show.replay_rows(rows), form)


def summaries_text(db: Connection, filters: Filters) -> str:
    """The latest sweep of each name that fits, a line a model."""
    chosen = [name for name in latest_sweeps(db) if filters.sweep is None or fits(name, str(filters.sweep))]
    groups = [chosen_rows(db, replace(filters, sweep=name)) for name in chosen or [filters.sweep]]
    return "\n".join(summary_text(rows) for rows in groups if rows) or show.table([])


def summary_text(rows: list[dict[str, Any]]) -> str:
    """A sweep's results, a line a model."""
    n = max(row["n"] for row in rows)
    head = f"{rows[0]['sweep']}: accuracy in % on {n} images, clean and under the worst of the attacks by radius"
    return f"{head}\n{show.table(show.summary_rows(rows))}"


def counts_text(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in found.items() if n) or "no jobs"


def status_text(store: Store, name: str | None, *, as_json: bool) -> str:
    """Jobs by state, what runs, what failed."""
    with store.begin() as db:
        chosen = find_sweep(db, name)
        data = {
            "jobs": counts(db, chosen),
            "sweeps": sweeps(db),
            "running": running(db),
            "failed": failures(db, chosen),
        }
    if as_json:
        return show.json_text(data)
    parts = [counts_text(data["jobs"])]
    if name is None and data["sweeps"]:
        shown = ("sweep", *data["jobs"])
        parts.append(show.table(data["sweeps"], shown))
    if data["running"]:
        shown = ("id", "kind", "arch", "attack", "progress_done", "progress_total", "progress_note", "seconds")
        parts.append("running:\n" + show.table(data["running"], shown))
    if data["failed"]:
        parts.append("failed:\n" + show.table(data["failed"]))
    return "\n\n".join(parts)


def raise_failures(store: Store, chosen: int | None) -> None:
    """JobsFailed, with the first reason, where a job of the sweep failed; also where one was cancelled."""
    with store.begin() as db:
        ended = counts(db, chosen)
        first = failures(db, chosen, most=1)
        named = "" if chosen is None else f" --sweep {shlex.quote(sweep_name(db, chosen))}"
    if failed := ended["failed"]:
        reason = f"{first[0]['error_class']}: {first[0]['error_message']}"
        raise JobsFailed(
            f"{failed} jobs failed, job {first[0]['id']} with {reason} "
            f"(robustq logs {first[0]['id']} shows all of it, robustq retry{named} queues them again)"
        )
    if ended["cancelled"]:
        raise JobsFailed(f"{ended['cancelled']} jobs were cancelled (robustq retry{named} queues them again)")


def chosen_jobs(db: Any, job_ids: Sequence[int], name: str | None) -> Any:
    if not job_ids and name is None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got neither")
    if job_ids and name is not None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got both")
    for job_id in job_ids:
        job_log(db, job_id)  # raises for a number that does not exist
    return list(job_ids) if job_ids else jobs_of(find_sweep(db, name))


def cancel(store: Store, job_ids: Sequence[int], name: str | None) -> str:
    """Cancel jobs, of a sweep those that no other wants; says how many were not finished, and what stays."""
    from jobs import control

    with store.begin() as db:
        chosen = chosen_jobs(db, job_ids, name)
        if job_ids or (sweep_id := find_sweep(db, name)) is None:
            return f"{control.cancel(db, chosen)} jobs cancelled"
        free, names = control.only_of(db, sweep_id)
        wanted = control.unfinished(db, chosen)
        n = control.cancel(db, free)
        control.give_up(db, str(name), cancelled=True)
    if not names:
        return f"{n} jobs cancelled"
    return (
        f"{n} jobs cancelled; {wanted - n} stay in the queue, which other sweeps want too: {', '.join(names)} "
        "(robustq cancel with their numbers ends them for all)"
    )


def retry(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Queue failed and cancelled jobs again, with those that failed only for their sake, and jobs whose weights or
    images are lost; returns how many.
    """
    from jobs import control

    with store.begin() as db:
        chosen = chosen_jobs(db, job_ids, name)
        if not job_ids:
            control.give_up(db, str(name), cancelled=False)
        control.forget(db, control.lost(db, chosen, store.artifacts, named=bool(job_ids)))
        return control.retry(db, chosen)


def pause(store: Store, name: str, *, paused: bool) -> int:
    """Pause a sweep or go on with it; returns how many of its jobs are not finished."""
    from jobs import control

    with store.begin() as db:
        chosen = find_sweep(db, name)
        assert chosen is not None
        return control.pause(db, chosen, paused=paused)


def prioritise(store: Store, job_ids: Sequence[int], name: str | None, priority: int) -> int:
    """Set the priority of jobs; returns how many were not finished."""
    from jobs import control

    with store.begin() as db:
        return control.prioritise(db, chosen_jobs(db, job_ids, name), priority)


def all_ended(store: Store, name: str | None) -> bool:
    with store.begin() as db:
        return not any_unfinished(db, find_sweep(db, name))


def has_ended(store: Store, job_id: int) -> bool:
    with store.begin() as db:
        return job_log(db, job_id)["state"] in ("done", "failed", "cancelled")


def log_text(store: Store, job_id: int, *, as_json: bool) -> str:
    with store.begin() as db:
        log = job_log(db, job_id)
    return show.json_text(log) if as_json else show.log_text(log)


def write_weights(store: Store, chosen: int, out: Path) -> None:
    """Copy the weights that the sweep's only training left to a file."""
    from jobs import artifacts
    from jobs.query import weights_of_sweep

    with store.begin() as db:
        sha256 = weights_of_sweep(db, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(artifacts.get(store.artifacts, sha256))
