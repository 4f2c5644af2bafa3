"""The actions behind the commands that read the store or change its queue, one function each."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustlib.number_text import counted
from robustq.jobs.commands import terminal_rows
from robustq.jobs.errors import JobsFailed, SpecError
from robustq.jobs.queue import device_time
from robustq.jobs.queue.left_out import count_left_out, left_out_jobs, left_out_words
from robustq.jobs.queue.status import (
    IsGone,
    any_unfinished,
    bad_gpus,
    counts,
    ended_drivers,
    failures,
    job_log,
    left_behind,
    left_words,
    running,
    sweeps,
)
from robustq.jobs.queue.time_left import seconds_left_here
from robustq.jobs.queue.transitions import UNFINISHED
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.connection import Store
from robustq.jobs.store.sweeps import find_sweep, sweep_name
from robustq.jobs.text import tables
from robustq.jobs.text.durations import duration
from robustq.jobs.text.numbers import eps_text
from robustq.jobs.text.told_specs import as_told


def sweep_id(store: Store, name: str | None) -> int | None:
    """The latest sweep of this name, None for no name."""
    with store.begin() as db:
        return find_sweep(db, name)


def earlier_words(store: Store, sweep_id: int | None) -> str:
    """That earlier versions of a sweep have jobs which a drive of it leaves alone; empty where they have none."""
    from robustq.jobs.queue import user_actions

    if sweep_id is None:
        return ""
    with store.begin() as db:
        left, name = user_actions.left_in_earlier_versions(db, sweep_id), sweep_name(db, sweep_id)
    if not left:
        return ""
    jobs = counted(left, "unfinished job stays", "unfinished jobs stay")
    return (
        f"sweep {name}: {jobs} in the queue, of earlier versions of its study; robustq drive without --sweep runs all"
    )


def status_text(store: Store, name: str | None, *, as_json: bool, is_gone: IsGone = lambda pid, process: False) -> str:
    """Jobs by state, what runs, what failed. is_gone: tells drivers that died from those at work."""
    with store.begin() as db:
        chosen = find_sweep(db, name)
        dead = ended_drivers(db, is_gone)
        data = {
            "jobs": counts(db, chosen),
            "sweeps": sweeps(db, [] if as_json else [one["id"] for one in left_behind(db, None, dead)]),
            "running": running(db),
            "left_behind": left_behind(db, chosen, dead),
            "failed": failures(db, chosen),
            "bad_gpus": bad_gpus(db),
            "left_out": count_left_out(db, chosen),
            "left_out_jobs": left_out_jobs(db, chosen) if as_json else [],
            "left_seconds": seconds_left_here(db, chosen, dead),
            "device_hours": device_time.as_json(hours := device_time.device_hours(db, chosen)),
        }
        without = left_out_words(db, chosen)
    if as_json:
        return tables.json_text(data)
    left_alone = data["left_behind"]
    at_work = {state: n - sum(one["state"] == state for one in left_alone) for state, n in data["jobs"].items()}
    parts = [counts_text(at_work) if any(at_work.values()) or not left_alone else "nothing runs"]
    if (left := data["left_seconds"]) is not None and any(at_work[state] for state in UNFINISHED):
        parts[0] += f"; about {duration(left)} left"
    if data["left_out"]:
        named = "NAME" if name is None else shlex.quote(name)
        how = f"robustq retry --sweep {named} queues {it(data['left_out'])}"
        were = counted(data["left_out"], "of the cancelled was", "of the cancelled were")
        parts[0] += f"; {were} left out of a budget ({how})"
    parts[0] += "".join(f"\n{line}" for line in without)
    if hours.words:
        parts[0] += f"\ndevice hours: {hours.words}"
    if left_alone:
        parts.append(left_words(left_alone, name))
    if name is None and data["sweeps"]:
        shown = ("sweep", *data["jobs"], *(["left"] if left_alone else []))
        parts.append(tables.table(data["sweeps"], shown))
    if runs := [row for row in data["running"] if row["id"] not in {one["id"] for one in left_alone}]:
        parts.append("running:\n" + tables.table(*running_table(runs), least=LEAST))
    if data["bad_gpus"]:
        parts.append("\n".join(data["bad_gpus"]))
    if data["failed"]:
        failed = [row | {"eps": eps_text(row["eps"])} for row in data["failed"]]
        parts.append("failed:\n" + tables.table(failed, least=LEAST))
    return "\n\n".join(parts)


# What a narrow terminal does without, the first first.
LEAST = ("arch", "norm", "progress_note", "kind")


def running_table(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Jobs that run as the terminal shows them, and the columns."""
    of_job = ("id", "kind", "model", "seed", "arch", "attack", "norm", "eps")
    shown = (*of_job, "progress_done", "progress_total", "progress_note", "seconds")
    return [row | {"eps": eps_text(row["eps"])} for row in rows], shown


def it(n: int) -> str:
    return "it" if n == 1 else "them"


def counts_text(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in found.items() if n) or "no jobs"


def raise_failures(store: Store, chosen: int | None) -> None:
    """JobsFailed, with the first reason, where a job of the sweep failed; also where one was cancelled."""
    with store.begin() as db:
        ended = counts(db, chosen)
        first, left_out = failures(db, chosen, most=1), count_left_out(db, chosen)
        named = "" if chosen is None else f" --sweep {shlex.quote(sweep_name(db, chosen))}"
    if failed := ended["failed"]:
        reason = f"{first[0]['error_class']}: {first[0]['error_message']}"
        raise JobsFailed(
            f"{counted(failed, 'job')} failed, job {first[0]['id']} with {reason} "
            f"(robustq logs {first[0]['id']} shows all of it, robustq retry{named} queues {it(failed)} again)"
        )
    if cancelled := ended["cancelled"] - left_out:
        was = counted(cancelled, "job was", "jobs were")
        raise JobsFailed(f"{was} cancelled (robustq retry{named} queues {it(cancelled)} again)")


def chosen_jobs(db: Any, job_ids: Sequence[int], name: str | None) -> Any:
    """The jobs of these numbers, or those of all versions of a sweep."""
    from robustq.jobs.queue.user_actions import of_versions

    if not job_ids and name is None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got neither")
    if job_ids and name is not None:
        raise SpecError("expected numbers of jobs or --sweep NAME, got both")
    for job_id in job_ids:
        job_log(db, job_id)  # raises for a number that does not exist
    sweep_id = find_sweep(db, name)
    return list(job_ids) if sweep_id is None else of_versions(db, sweep_id)


def cancel(store: Store, job_ids: Sequence[int], name: str | None) -> str:
    """Cancel jobs, of a sweep those that no other wants; says how many were not finished, and what stays."""
    return cancelled_text(cancelled(store, job_ids, name))


def cancelled(store: Store, job_ids: Sequence[int], name: str | None) -> dict[str, Any]:
    """Cancel jobs, of a sweep those of all its versions that no other wants: how many were not finished, how many stay,
    and which sweeps want these.
    """
    from robustq.jobs.queue import user_actions

    with store.begin() as db:
        chosen = chosen_jobs(db, job_ids, name)
        if job_ids or (sweep_id := find_sweep(db, name)) is None:
            return {"cancelled": user_actions.cancel(db, chosen), "stay": 0, "wanted_by": []}
        user_actions.mark_cancelled(db, str(name))  # first, as where it is wanted: two who ask take turns on a server
        free, names = user_actions.only_of(db, sweep_id)
        wanted = user_actions.unfinished(db, chosen)
        n = user_actions.cancel(db, free)
    return {"cancelled": n, "stay": wanted - n if names else 0, "wanted_by": names}


def cancelled_text(found: dict[str, Any]) -> str:
    text = f"{counted(found['cancelled'], 'job')} cancelled"
    if not found["wanted_by"]:
        return text
    stay = counted(found["stay"], "stays", "stay")
    return (
        f"{text}; {stay} in the queue, which other sweeps want too: {', '.join(found['wanted_by'])} "
        "(robustq cancel with their numbers ends them for all)"
    )


def retry(store: Store, job_ids: Sequence[int], name: str | None) -> int:
    """Queue failed and cancelled jobs again, of a sweep in all versions, with those that failed only for their sake,
    and jobs that lost what they left; returns how many.
    """
    from robustq.jobs.queue import lost_files, user_actions

    with store.begin() as db:
        chosen = chosen_jobs(db, job_ids, name)
        if not job_ids:
            user_actions.mark_wanted(db, str(name))
        lost = lost_files.lost(db, chosen, store.artifacts, named=bool(job_ids))
        user_actions.forget(db, lost)
        return sum(user_actions.retry(db, some) for some in chunks(lost)) + user_actions.retry(db, chosen)


def pause(store: Store, name: str, *, paused: bool) -> int:
    """Pause a sweep or go on with it; returns how many of its jobs are not finished."""
    from robustq.jobs.queue import user_actions

    with store.begin() as db:
        chosen = find_sweep(db, name)
        assert chosen is not None
        return user_actions.pause(db, chosen, paused=paused)


def prioritise(store: Store, job_ids: Sequence[int], name: str | None, priority: int) -> int:
    """Set the priority of jobs, of a sweep in all its versions; returns how many were not finished."""
    from robustq.jobs.queue import user_actions

    with store.begin() as db:
        return user_actions.prioritise(db, chosen_jobs(db, job_ids, name), priority)


def all_ended(store: Store, name: str | None) -> bool:
    with store.begin() as db:
        return not any_unfinished(db, find_sweep(db, name))


def has_ended(store: Store, job_id: int) -> bool:
    with store.begin() as db:
        return job_log(db, job_id)["state"] in ("done", "failed", "cancelled")


def log_text(store: Store, job_id: int, *, as_json: bool) -> str:
    with store.begin() as db:
        log = job_log(db, job_id)
        log["spec"] = as_told(log["spec"])
    return tables.json_text(log) if as_json else terminal_rows.job_text(log)


def write_weights(store: Store, chosen: int, out: Path) -> None:
    """Copy the weights that the sweep's only training left to a file."""
    from robustq.jobs.results.rows import weights_of_sweep
    from robustq.jobs.store import artifacts

    with store.begin() as db:
        sha256 = weights_of_sweep(db, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(artifacts.get(store.artifacts, sha256))
