"""Results as people read them: tables for a terminal, numbers with their intervals."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

SUMMARY_RADII = 6  # columns that fit a terminal beside a name


def json_text(data: Any) -> str:
    """Data as JSON for other programs: accuracies stay fractions."""
    return json.dumps(data, indent=2, default=str)


def table(rows: Sequence[Row], columns: Iterable[str] | None = None) -> str:
    """Rows as text in aligned columns, nothing for null."""
    from tabulate import tabulate

    names = list(columns or (rows[0] if rows else ()))
    if not rows:
        return "nothing to show"
    flush = ["left" if any(isinstance(row.get(name), str) for row in rows) else "right" for name in names]
    cells = [[text(row.get(name)) for name in names] for row in rows]
    return tabulate(cells, headers=names, tablefmt="simple", disable_numparse=True, colalign=flush)


def text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def eps_text(eps: float | None) -> str:
    """A radius as people write it: n/255 where it is one, unless the plain number is shorter."""
    if eps is None:
        return ""
    steps = eps * 255
    whole = abs(steps - round(steps)) < 1e-9
    return f"{round(steps)}/255" if whole and len(f"{eps:g}") > 5 else f"{eps:g}"


def with_interval(row: Row, column: str) -> str:
    """An accuracy in percent with its 95 % interval."""
    return f"{percent(row[column])} [{percent(row[f'{column}_low'])}, {percent(row[f'{column}_high'])}]"


def result_rows(rows: Sequence[Row]) -> list[Row]:
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
            "robust %": with_interval(row, "robust_accuracy"),
            "distance": row["distance_median"],
            "seconds": round(row["seconds"], 1),
        }
        for row in rows
    ]


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """One line a model: clean accuracy, then that under the worst attack at some radii; mean over seeds, percent."""
    lines: dict[str, Row] = {}
    for norm, radii in radii_by_norm(rows).items():
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = [row for row in rows if row["model"] == model]
            line = lines.setdefault(model, {"model": model, "clean": percent(mean(mine, "clean_accuracy"))})
            for eps in radii:
                at = [row for row in mine if row["norm"] == norm and row["eps"] == eps]
                line[f"{norm} {eps_text(eps)}"] = percent(mean(worst_of(at), "robust_accuracy"))
    return list(lines.values())


def radii_by_norm(rows: Sequence[Row]) -> dict[str, list[float]]:
    """The radii to show for each norm: all, or evenly some of many; 0 is the clean accuracy again."""
    found: dict[str, list[float]] = {}
    for norm in dict.fromkeys(row["norm"] for row in rows if row["norm"]):
        radii = sorted({row["eps"] for row in rows if row["norm"] == norm and row["eps"]})
        if len(radii) > SUMMARY_RADII:
            last = len(radii) - 1
            radii = [radii[round(i * last / (SUMMARY_RADII - 1))] for i in range(SUMMARY_RADII)]
        if radii:
            found[norm] = radii
    return found


def worst_of(rows: Sequence[Row]) -> list[Row]:
    """The worst-case rows where there are any, else the only attack's."""
    return [row for row in rows if row["attack"] == "worst-case"] or list(rows)


def mean(rows: Sequence[Row], column: str) -> float | None:
    return sum(row[column] for row in rows) / len(rows) if rows else None


def log_text(log: dict[str, Any]) -> str:
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
