"""Results as people read them: tables for a terminal, numbers with their intervals."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustlib.checks.thresholds import FAIL
from robustlib.settings import CERTIFY
from robustq.jobs.results.aggregate import SD, mean_of, rows_by, why_of
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.worst_attack import WorstCase, attacked_by_radius, clean_rows, worst_case_of
from robustq.jobs.text.footnotes import WHY
from robustq.jobs.text.numbers import eps_text, interval_text, percent, trusted, unless_failed, with_interval
from robustq.jobs.text.tables import Row, table, text

if TYPE_CHECKING:  # whose modules load what a reading command does without
    from robustq.jobs.results.compare import Comparison

Shown = dict[str, Any]  # a row by the titles of its columns

SUMMARY_RADII = 6  # columns that fit a terminal beside a name


def shown_results(rows: Sequence[ResultRow]) -> list[Shown]:
    """Result rows as the terminal shows them. queries: of all images and of all radii of a search, beside the most of
    one image at the radius.
    """
    counted = any(row["queries"] is not None for row in rows)
    return [
        {
            "sweep": row["sweep"],
            "model": row["model"],
            **condition_cells(row),
            "clean %": with_interval(row, "clean_accuracy"),
            "robust %": trusted(row),
            "checks": row["verdict"],
            "distance": distance_text(row),
            **({"queries": row["queries"], "most an image": row["queries_most"]} if counted else {}),
            "seconds": round(row["seconds"], 1),
            "job": row["job_id"],
        }
        for row in rows
    ]


def distance_text(row: Row) -> str:
    """The median distance with its 95 % interval, where it has one."""
    median, low, high = (row[f"distance_median{end}"] for end in ("", "_low", "_high"))
    if median is None:
        return ""
    return text(median) if low is None else f"{text(median)} [{text(low)}, {text(high)}]"


# What a narrow terminal does without, the first first.
LEAST = (
    "seconds",
    "most an image",
    "queries",
    "sweep",
    "n",
    "job",
    "distance",
    "recipe",
    "rows",
    "seed",
    "dataset",
    "p chi2",
    "clean %",
)


def shown_groups(rows: Sequence[Row]) -> list[Shown]:
    """Groups as the terminal shows them: means in percent, with the standard deviation over seeds where there is one,
    and an interval for seeds and images: see `SPREAD`.
    """
    measures = {"clean_accuracy": "clean %", "robust_accuracy": "robust %"}
    shown = (*measures, "distance_median", "seconds", "seeds", "rows", "verdict", "why")
    given = [name for name in (rows[0] if rows else ()) if not name.startswith(shown)]
    spoilt = any(row["rows"] != row["seeds"] for row in rows)  # groups that hold more than seeds
    lines = []
    for row in rows:
        head = {name: eps_text(row[name]) if name == "eps" else row[name] for name in given}
        known = row["robust_accuracy_total_low"] is not None and row["verdict"] != FAIL
        spread = interval_text(row, "robust_accuracy_total") if known else ""
        line = head | {title: plus_minus(row, name) for name, title in measures.items()}
        line["robust %"] = unless_failed(line["robust %"], row["robust_accuracy"], row["verdict"])
        distance, spread_of_it = row["distance_median"], row["distance_median_sd"]
        away = text(distance) + ("" if spread_of_it is None else f" ± {text(spread_of_it)}")
        line |= {"robust 95 %": spread, "distance": away, "seconds": round(row["seconds"], 1)}
        lines.append(line | {"seeds": row["seeds"]} | ({"rows": row["rows"]} if spoilt else {}))
    return lines


# What stands under a table of means over seeds.
SPREAD = (
    "± is the standard deviation over seeds (n - 1); robust 95 % is an interval for both seeds and images, of one seed "
    "for its images alone"
)


def condition_cells(row: Any) -> Shown:
    """What an accuracy was measured under, as the terminal shows it."""
    names = ("attack", "norm", "eps", "seed", "n")
    return {name: row[name] for name in names} | {"eps": eps_text(row["eps"])}


def plus_minus(row: Row, column: str) -> str:
    """A mean in percent with the standard deviation over seeds."""
    deviation = row[f"{column}_sd"]
    return percent(row[column]) + ("" if deviation is None else f" ± {percent(deviation)}")


def shown_pivot(rows: Sequence[Row]) -> list[Shown]:
    """A pivot as the terminal shows it: percent, with the standard deviation over seeds where it has that."""
    lines = []
    for row in rows:
        line: Shown = {n: percent(v) if isinstance(v, float) else v for n, v in row.items() if n != WHY}
        for name in [name for name in line if name.endswith(SD) and name.removesuffix(SD) in line]:
            deviation = line.pop(name)
            if deviation:
                line[name.removesuffix(SD)] += f" ± {deviation}"
        lines.append(line)
    return lines


def shown_comparisons(rows: "Sequence[Comparison]") -> list[Shown]:
    """Comparisons as the terminal shows them: accuracies and their difference in percent and points."""
    return [
        {
            "first": row["first"],
            "second": row["second"],
            **condition_cells(row),
            **{
                f"{side} %": unless_failed(percent(accuracy), accuracy, row[f"{side}_verdict"])
                for side, accuracy in (("first", row["first_accuracy"]), ("second", row["second_accuracy"]))
            },
            "difference": f"{100 * row['difference']:+.1f} {interval_text(row, 'difference')}",
            "only first": row["only_first"],
            "only second": row["only_second"],
            "p exact": row["p_exact"],
            "p holm": row["p_holm"],
            "p chi2": row["p_chi2"],
        }
        for row in rows
    ]


def shown_summary(rows: Sequence[ResultRow]) -> list[Shown]:
    """One line a model: clean accuracy, then that under the worst attack at some radii; mean over seeds, percent."""
    found = attacked_by_radius(rows)
    shown = radii_by_norm(list(found))
    lines = []
    for (model,), mine in rows_by([row for row in rows if row["attack"] != CERTIFY], "model").items():
        line: Shown = {"model": model, "clean": percent(mean_of(clean_rows(mine), "clean_accuracy"))}
        for norm, eps in shown:
            here = found.get((norm, eps, model))
            line[f"{norm} {eps_text(eps)}"] = worst_text(worst_case_of(here)) if here else ""
        lines.append(line)
    return lines


def summary_why(rows: Sequence[ResultRow], model: str) -> str | None:
    """Why a model's numbers in a summary are not to be trusted: the reasons of the rows that they rest on."""
    cases = [worst_case_of(here) for (_, _, name), here in attacked_by_radius(rows).items() if name == model]
    failed = [row for case in cases if case.verdict == FAIL for row in case.rows]
    return why_of(failed)


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
    whose = f"{log['model']}, seed {log['seed']}"
    lines = [f"job {log['id']}  {log['kind']}  {whose}  {log['state']}  key {log['key'][:16]}", spec]
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
