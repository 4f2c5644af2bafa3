"""Results as people read them: tables for a terminal, numbers with their intervals."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.checks.thresholds import FAIL
from robustlib.settings import CERTIFY
from robustq.jobs.results.aggregate import mean_of, rows_by
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.worst_attack import WorstCase, attacked_by_radius, worst_case_of
from robustq.jobs.text.numbers import eps_text, interval_text, percent, trusted, unless_failed, with_interval
from robustq.jobs.text.tables import Row, table

if TYPE_CHECKING:  # whose modules load what a reading command does without
    from robustq.jobs.results.compare import Comparison
    from robustq.jobs.verification.diff import Change
    from robustq.jobs.verification.replay import Replayed

Shown = dict[str, Any]  # a row by the titles of its columns

SUMMARY_RADII = 6  # columns that fit a terminal beside a name


def shown_results(rows: Sequence[ResultRow]) -> list[Shown]:
    """Result rows as the terminal shows them."""
    return [
        {
            "sweep": row["sweep"],
            "model": row["model"],
            "attack": row["attack"],
            "norm": row["norm"],
            "eps": eps_text(row["eps"]),
            "seed": row["seed"],
            "n": row["n"],
            "clean %": with_interval(row, "clean_accuracy"),
            "robust %": trusted(row),
            "checks": row["verdict"],
            "distance": row["distance_median"],
            "seconds": round(row["seconds"], 1),
            "job": row["job_id"],
        }
        for row in rows
    ]


# What a narrow terminal does without, the first first.
LEAST = ("seconds", "sweep", "n", "job", "distance", "recipe", "rows", "seed", "dataset", "p chi2", "clean %")


def shown_groups(rows: Sequence[Row]) -> list[Shown]:
    """Groups as the terminal shows them: means in percent, with the standard error over seeds where there is one."""
    measures = {"clean_accuracy": "clean %", "robust_accuracy": "robust %"}
    shown = (*measures, "distance_median", "seconds", "seeds", "rows", "verdict")
    given = [name for name in (rows[0] if rows else ()) if not name.startswith(shown)]
    spoilt = any(row["rows"] != row["seeds"] for row in rows)  # groups that hold more than seeds
    lines = []
    for row in rows:
        head = {name: eps_text(row[name]) if name == "eps" else row[name] for name in given}
        spread = (
            ""
            if row["robust_accuracy_low"] is None or row["verdict"] == FAIL
            else interval_text(row, "robust_accuracy")
        )
        line = head | {title: plus_minus(row, name) for name, title in measures.items()}
        line["robust %"] = unless_failed(line["robust %"], row["robust_accuracy"], row["verdict"])
        line |= {"robust 95 %": spread, "distance": row["distance_median"], "seconds": round(row["seconds"], 1)}
        lines.append(line | {"seeds": row["seeds"]} | ({"rows": row["rows"]} if spoilt else {}))
    return lines


def plus_minus(row: Row, column: str) -> str:
    error = row[f"{column}_se"]
    return percent(row[column]) + ("" if error is None else f" ± {percent(error)}")


def shown_pivot(rows: Sequence[Row]) -> list[Shown]:
    return [{n: percent(v) if isinstance(v, float) else v for n, v in row.items()} for row in rows]


def shown_comparisons(rows: "Sequence[Comparison]") -> list[Shown]:
    """Comparisons as the terminal shows them: accuracies and their difference in percent and points."""
    return [
        {
            "first": row["first"],
            "second": row["second"],
            "attack": row["attack"],
            "norm": row["norm"],
            "eps": eps_text(row["eps"]),
            "seed": row["seed"],
            "n": row["n"],
            **{
                f"{side} %": unless_failed(percent(accuracy), accuracy, row[f"{side}_verdict"])
                for side, accuracy in (("first", row["first_accuracy"]), ("second", row["second_accuracy"]))
            },
            "difference": f"{100 * row['difference']:+.1f} {interval_text(row, 'difference')}",
            "only first": row["only_first"],
            "only second": row["only_second"],
            "p exact": row["p_exact"],
            "p chi2": row["p_chi2"],
        }
        for row in rows
    ]


def shown_changes(rows: "Sequence[Change]") -> list[Shown]:
    """What changed, as the terminal shows it: rows that are the same are only counted."""
    return [
        {
            "change": row["change"],
            "dataset": row["dataset"],
            "model": row["model"],
            "attack": row["attack"],
            "norm": row["norm"],
            "eps": eps_text(row["eps"]),
            "seed": row["seed"],
            "n": row["n"],
            "clean %": f"{percent(row['old_clean_accuracy'])} > {percent(row['new_clean_accuracy'])}",
            "robust %": f"{percent(row['old_robust_accuracy'])} > {percent(row['new_robust_accuracy'])}",
            "difference 95 %": "" if row["difference_low"] is None else interval_text(row, "difference"),
            "p exact": row["p_exact"],
        }
        for row in rows
        if row["change"] != "same"
    ]


def shown_replays(rows: "Sequence[Replayed]") -> list[Shown]:
    """Replays as the terminal shows them; why some are not equal, where there is anything to say."""
    said = any(row["reason"] for row in rows)
    return [
        {
            "outcome": row["outcome"],
            "job": row["job_id"],
            "model": row["model"],
            "attack": row["attack"],
            "norm": row["norm"],
            "eps": eps_text(row["eps"]),
            "seed": row["seed"],
            "n": row["n"],
            "robust %": f"{percent(row['old_robust_accuracy'])} > {percent(row['new_robust_accuracy'])}",
            "examples that differ": row["examples_that_differ"],
            "same machine": "yes" if row["same_machine"] else "no",
        }
        | ({"why": row["reason"]} if said else {})
        for row in rows
    ]


def shown_summary(rows: Sequence[ResultRow]) -> list[Shown]:
    """One line a model: clean accuracy, then that under the worst attack at some radii; mean over seeds, percent."""
    found = attacked_by_radius(rows)
    shown = radii_by_norm(list(found))
    lines = []
    for (model,), mine in rows_by([row for row in rows if row["attack"] != CERTIFY], "model").items():
        line: Shown = {"model": model, "clean": percent(mean_of(mine, "clean_accuracy"))}
        for norm, eps in shown:
            here = found.get((norm, eps, model))
            line[f"{norm} {eps_text(eps)}"] = worst_text(worst_case_of(here)) if here else ""
        lines.append(line)
    return lines


def worst_text(case: WorstCase[ResultRow]) -> str:
    return unless_failed(percent(case.accuracy), case.accuracy, case.verdict)


def radii_by_norm(found: Sequence[tuple[str, float, str]]) -> list[tuple[str, float]]:
    """The radii to show for each norm: all, or evenly some of many.  found: norms, radii and models."""
    shown = []
    for norm in dict.fromkeys(norm for norm, _, _ in found):
        radii = sorted({eps for other, eps, _ in found if other == norm})
        if len(radii) > SUMMARY_RADII:
            last = len(radii) - 1
            radii = [radii[round(i * last / (SUMMARY_RADII - 1))] for i in range(SUMMARY_RADII)]
        shown += [(norm, eps) for eps in radii]
    return shown


def job_text(log: dict[str, Any]) -> str:
    """What is known of a job, for people."""
    spec = json.dumps(log["spec"], indent=2)
    lines = [f"job {log['id']}  {log['kind']}  {log['state']}  key {log['key'][:16]}", spec]
    if log["error_class"]:
        lines.append(f"{log['error_class']}: {log['error_message']}")
    for attempt in log["attempts"]:
        took = f"{attempt['ended_at'] - attempt['started_at']:.1f} s" if attempt["ended_at"] else "still running"
        where = f"on {attempt['node']}, pid {attempt['pid']}"
        lines.append(f"attempt {attempt['n']} {where}: {attempt['outcome'] or 'running'}, {took}")
        if attempt["traceback"]:
            lines.append(attempt["traceback"].rstrip())
    lines += [f"event {event['kind']} {event['data'] or ''}".rstrip() for event in log["events"]]
    for result in log["results"]:
        history = (result["extra"] or {}).get("history")
        if history:
            shown = ("epoch", "loss", "clean_accuracy", "attacked_accuracy", "seconds")
            lines.append(table(history, shown))
    return "\n".join(lines)
