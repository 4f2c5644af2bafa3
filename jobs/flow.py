"""What the commands do that read the store or change its queue, one function each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import show
from jobs.engine import Store
from jobs.errors import JobsFailed, SpecError
from jobs.query import (
    any_unfinished,
    counts,
    failures,
    find_sweep,
    job_log,
    jobs_of,
    results,
    running,
    sweeps,
    with_details,
)


def sweep_id(store: Store, name: str | None) -> int | None:
    """The latest sweep of this name, None for no name."""
    with store.begin() as db:
        return find_sweep(db, name)


def results_text(store: Store, chosen: int | None, *, as_json: bool, summary: bool = False) -> str:
    """The results of a sweep or of all, as text or JSON; the summary is of the latest sweep of each name."""
    with store.begin() as db:
        if summary and not as_json:
            names = dict.fromkeys(entry["sweep"] for entry in sweeps(db))
            groups = [results(db, id_) for id_ in ([chosen] if chosen else [find_sweep(db, name) for name in names])]
            return "\n".join(summary_text(rows) for rows in groups if rows) or show.table([])
        rows = results(db, chosen)
        rows = with_details(db, rows) if as_json else rows
    return show.json_text(rows) if as_json else show.table(show.result_rows(rows))


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
    """JobsFailed, with the first reason, where a job of the sweep failed."""
    with store.begin() as db:
        failed = counts(db, chosen)["failed"]
        first = failures(db, chosen, most=1)
    if failed:
        reason = f"{first[0]['error_class']}: {first[0]['error_message']}"
        raise JobsFailed(
            f"{failed} jobs failed, job {first[0]['id']} with {reason} "
            f"(robustq logs {first[0]['id']} shows all of it, robustq retry queues them again)"
        )


def chosen_jobs(db: Any, job_ids: Sequence[int], name: str | None) -> Any:
    if not job_ids and name is None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got neither")
    for job_id in job_ids:
        job_log(db, job_id)  # raises for a number that does not exist
    return list(job_ids) if job_ids else jobs_of(find_sweep(db, name))


def cancel(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Cancel jobs; returns how many were not finished."""
    from jobs import control

    with store.begin() as db:
        return control.cancel(db, chosen_jobs(db, job_ids, name))


def retry(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Queue failed and cancelled jobs again, with those that failed only for their sake; returns how many."""
    from jobs import control

    with store.begin() as db:
        return control.retry(db, chosen_jobs(db, job_ids, name))


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
