"""The text that `diff`, `replay` and `check` print."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from robustlib.number_text import counted, percents
from robustq.jobs.commands.results_text import rows_text
from robustq.jobs.commands.terminal_rows import Shown, condition_cells
from robustq.jobs.results.explanations.rows import asks_of_explanations, explanation_rows
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.connection import open_store
from robustq.jobs.text import tables
from robustq.jobs.text.notes import note
from robustq.jobs.text.numbers import interval_text, percent

if TYPE_CHECKING:
    from robustq.jobs.verification.bundle_check import Found
    from robustq.jobs.verification.diff import Change, Side
    from robustq.jobs.verification.replay import Replayed


def changes_between(url: str, old: str, new: str, versions: str | None, filters: Filters) -> "list[Change]":
    """What changed between two stores, or with `versions` between the rows of two versions in the store `url`."""
    from robustq.jobs.verification.diff import Side, diff, of_version

    if versions is not None:
        with open_store(url).begin() as db:
            sides = [Side(db, of_version(filters, versions, value)) for value in (old, new)]
            tell_left_out(sides)
            return diff(*sides)
    with open_store(old).begin() as one, open_store(new).begin() as other:
        sides = [Side(one, filters), Side(other, filters)]
        tell_left_out(sides)
        return diff(*sides)


def tell_left_out(sides: "Sequence[Side]") -> None:
    """That explanations of these sides are not compared, where there are some."""
    if any(asks_of_explanations(side.filters) and explanation_rows(side.db, side.filters) for side in sides):
        note("explanations are not compared: robustq replay runs them again")


def diff_text(rows: "Sequence[Change]", form: str) -> str:
    return rows_text(rows, shown_changes(rows), form)


def replay_text(rows: "Sequence[Replayed]", form: str) -> str:
    return rows_text(rows, shown_replays(rows), form)


def shown_changes(rows: "Sequence[Change]") -> list[Shown]:
    """What changed, as the terminal shows it: rows that are the same are only counted."""
    return [
        {
            "change": row["change"],
            "dataset": row["dataset"],
            "model": row["model"],
            **condition_cells(row),
            "clean %": before_and_after(row["old_clean_accuracy"], row["new_clean_accuracy"]),
            "robust %": before_and_after(row["old_robust_accuracy"], row["new_robust_accuracy"]),
            "difference 95 %": "" if row["difference_low"] is None else interval_text(row, "difference"),
            "p exact": row["p_exact"],
        }
        for row in rows
        if row["change"] != "same"
    ]


def before_and_after(old: float | None, new: float | None) -> str:
    """Two accuracies in percent, which look alike only where they are."""
    if old is None and new is None:  # of an explanation
        return ""
    if old is None or new is None:
        return f"{percent(old)} > {percent(new)}"
    return " > ".join(percents((old, new)))


def shown_replays(rows: "Sequence[Replayed]") -> list[Shown]:
    """Replays as the terminal shows them; why some are not equal, where there is anything to say."""
    said = any(row["reason"] for row in rows)
    return [
        {
            "outcome": row["outcome"],
            "job": row["job_id"],
            "model": row["model"],
            **condition_cells(row),
            "robust %": before_and_after(row["old_robust_accuracy"], row["new_robust_accuracy"]),
            "examples that differ": row["examples_that_differ"],
            "same machine": "yes" if row["same_machine"] else "no",
        }
        | ({"why": row["reason"]} if said else {})
        for row in rows
    ]


def check_text(found: "Found", *, as_json: bool) -> str:
    """What a check of a bundle found: files, numbers, and the evaluations that ran again."""
    if as_json:
        return tables.json_text(asdict(found) | {"wrong": found.wrong})
    left = ", ".join(f"{n} {state}" for state, n in found.states.items() if n and state != "done")
    lines = [
        f"sweep {found.sweep}, robustq {found.robustq}, kernels {found.kernel}; fingerprint {found.fingerprint}",
        *([f"finished jobs alone: {left} of the sweep are not in it"] if left else []),
    ]
    if found.tampered:
        lines += [f"{what}: {name}" for name, what in found.tampered]
    else:
        lines.append(f"files: all {found.files} have the hashes of the manifest")
    if found.contradictions:
        lines += [f"contradiction: {line}" for line in found.contradictions]
    elif found.evaluations and not found.tampered:
        own = counted(found.evaluations, "evaluation follow from its", "evaluations follow from their")
        lines.append(f"numbers: those of {own} outcomes")
    lines += [f"not run again, {n}: {why}" for why, n in found.left_out.items()]
    if found.replayed:
        rows = [{name: cell for name, cell in row.items() if name != "job"} for row in shown_replays(found.replayed)]
        lines += ["", tables.table(rows)]
    elif not found.wrong:
        lines.append("no evaluation was run again")
    else:
        lines.append("no evaluation was run again: what is above comes first")
    return "\n".join(lines)
