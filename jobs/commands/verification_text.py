"""The text that `diff`, `replay` and `check` print."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from robustlib.number_text import counted, percents
from robustq.jobs.commands.explanations_text import WORDS, interval, number
from robustq.jobs.commands.results_text import rows_text
from robustq.jobs.commands.terminal_rows import Shown, condition_cells
from robustq.jobs.errors import SpecError
from robustq.jobs.results.explanations.stability import method_names
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.connection import open_store
from robustq.jobs.text import tables
from robustq.jobs.text.numbers import eps_text, interval_text, percent

if TYPE_CHECKING:
    from robustq.jobs.verification.bundle_check import Found
    from robustq.jobs.verification.diff import Change, Side
    from robustq.jobs.verification.diff_explanations import ExplanationChange
    from robustq.jobs.verification.replay import Replayed


@dataclass(frozen=True)
class Changes:
    """What became of results, and of explanations beside them."""

    results: "list[Change]"
    explanations: "list[ExplanationChange]"


def changes_between(
    url: str, old: str, new: str, versions: str | None, filters: Filters, *, explanations: bool = False
) -> Changes:
    """What changed between two stores, or with `versions` between the rows of two versions in the store `url`.

    explanations: of them alone. Raises SpecError where neither side has anything.
    """
    from robustq.jobs.verification.diff import Side, of_version

    if versions is not None:
        with open_store(url).begin() as db:
            one, other = (Side(db, of_version(filters, versions, value)) for value in (old, new))
            return changes_of(one, other, explanations)
    with open_store(old).begin() as before, open_store(new).begin() as after:
        return changes_of(Side(before, filters), Side(after, filters), explanations)


def changes_of(old: "Side", new: "Side", explanations: bool) -> Changes:
    from robustq.jobs.verification.diff import diff
    from robustq.jobs.verification.diff_explanations import diff_explanations

    explained = diff_explanations(old, new)
    results = [] if explanations else diff(old, new)
    if not results and not explained:
        raise SpecError(f"neither side has {'an explanation' if explanations else 'a result'} that the options leave")
    return Changes(results, explained)


def printed_in(form: str, *, explanations: bool) -> tuple[str, ...]:
    """Which of the two a form prints: a table both, each other form one of them."""
    return ("explanations",) if explanations else ("results", "explanations") if form == "table" else ("results",)


def diff_text(found: Changes, form: str, *, explanations: bool) -> str:
    """Results and below them explanations, as tables, each where there is anything to show; in the other forms one of
    the two. Raises SpecError where a form is without results and there are explanations alone.
    """
    shown = [shown_changes(found.results), shown_explanations(found.explanations)]
    if form != "table":
        rows = found.explanations if explanations else found.results
        if not rows:
            raise SpecError("neither side has a result that the options leave, but explanations: add --explanations")
        return rows_text(rows, shown[explanations], form)
    both = zip((found.results, found.explanations), shown, strict=True)
    told = [rows_text(rows, lines, form) for rows, lines in both if lines]
    return "\n\n".join(told) or rows_text([], [], form)


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


def shown_explanations(rows: "Sequence[ExplanationChange]") -> list[Shown]:
    """The same of explanations."""
    both = len({row["target"] for row in rows}) > 1
    called = method_names(rows)
    heads = ("change", "dataset", "model", "method", *(["target"] if both else []), "norm")
    return [
        {name: row[name] for name in heads}
        | {
            "method": called[row["recipe"]],
            "eps": eps_text(row["eps"]),
            "seed": row["seed"],
            "n": row["examples"],
            "against": row["against"],
        }
        | {
            "top-k": means_text(row["old_top_intersection"], row["new_top_intersection"]),
            "difference 95 %": ""
            if row["difference_low"] is None
            else interval(row["difference_low"], row["difference_high"]),
            "images that differ": row["images_that_differ"],
            "moved": ", ".join(WORDS[name] for name in row["moved"].split(", ") if name),
        }
        for row in rows
        if row["change"] != "same"
    ]


def means_text(old: float | None, new: float | None) -> str:
    return "" if old is None and new is None else f"{number(old)} > {number(new)}"


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
