"""The tables of what results took, and of what it takes to repeat them."""

from collections.abc import Callable, Sequence
from typing import Any

from robustq.jobs.report.page import html_table
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.html_table import Cell, Column, Line, Table
from robustq.jobs.report.page.result_tables import distance_cell, eps_cell
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.columns import PageRow


def cost_table(sweep: Sweep, queries: dict[int, int | None]) -> Table | None:
    """What each model took: seconds of training and evaluation by device, images passed, queries.

    queries: of each evaluation, see `query_totals`.
    """
    lines, trained, evaluated = [], rows_by(sweep.trainings, "model"), rows_by(sweep.rows, "model")
    for (model,) in dict.fromkeys([*trained, *evaluated]):
        mine = evaluated.get((model,), [])
        once = list({curve_of(row): row for row in mine}.values())
        lines.append(
            {
                "model": model,
                "training seconds": round(sum(t["seconds"] for t in trained.get((model,), [])), 1),
                "attack seconds, CPU": round(sum(row["seconds"] for row in mine if row["device"].startswith("cpu")), 1),
                "attack seconds, GPU": round(
                    sum(row["seconds"] for row in mine if not row["device"].startswith("cpu")), 1
                ),
                "images forward": html_table.total(row["extra"].get("forwards") for row in once),
                "images forward and back": html_table.total(row["extra"].get("gradients") for row in once),
                "queries": html_table.total(searched(mine, queries)),
            }
        )
    if len(lines) > 1:
        sums = {label: html_table.total(line[label] for line in lines) for label in lines[0] if label != "model"}
        lines.append(
            {"model": "all"} | {label: round(v, 1) if isinstance(v, float) else v for label, v in sums.items()}
        )
    known = [label for label in lines[0] if any(line[label] for line in lines)] if lines else []
    return html_table.table_of(
        "costs", "What the study took", [{label: line[label] for label in known} for line in lines]
    )


def searched(rows: Sequence[PageRow], queries: dict[int, int | None]) -> list[int | None]:
    """The queries of each search: of several radii as one those down to the smallest, which hold the others."""
    return [
        max((n for row in same if (n := queries.get(row["job_id"])) is not None), default=None)
        for same in group_by(rows, curve_of).values()
    ]


def group_by(rows: Sequence[PageRow], key: Callable[[PageRow], Any]) -> dict[Any, list[PageRow]]:
    found: dict[Any, list[PageRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def curve_of(row: PageRow) -> tuple[Any, ...]:
    """What tells searches apart: the radii of a curve are one search, and each row tells the cost of all."""
    seconds = row["extra"].get("curve_seconds")
    place = (row["model"], row["seed"], row["attack"], row["norm"])
    return (*place, seconds) if seconds is not None else (*place, row["eps"], row["job_id"])


ALL_ROWS_COLUMNS = (
    Column("model", pick=True), Column("attack", pick=True), Column("norm", pick=True),
    Column("eps", number=True, pick=True), Column("seed", number=True), Column("images", number=True),
    Column("clean %", number=True), Column("robust %", number=True), Column("checks", pick=True),
    Column("median distance", number=True), Column("seconds", number=True), Column("recipe"), Column("searched in"),
    Column("weights (SHA-256)"), Column("key"), Column("versions"), Column("why"),
    Column("queries of the search", number=True), Column("most an image here", number=True), Column("again"),
)  # fmt: skip


def all_rows_table(sweep: Sweep, cache: PageCache) -> Table:
    """All results, with what each rests on and what it takes to repeat it.

    A recorded result does not change, but for the verdict on it, which a later audit may; its line is made once.
    """
    rows = []
    for row in sweep.rows:
        hash_ = weights_hash(row, sweep)
        key = (sweep.id, row["job_id"], f"{row['verdict']} {row['why']}", hash_)
        if key not in cache.lines:
            cache.lines[key] = result_line(row, hash_, sweep)
        rows.append(cache.lines[key])
    return Table("rows", "The one result" if len(rows) == 1 else f"All {len(rows)} results", ALL_ROWS_COLUMNS, rows)


def result_line(row: PageRow, weights: str, sweep: Sweep) -> Line:
    failed = row["verdict"] == "fail"
    robust = [row[name] for name in ("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")]
    distance = row["distance_median"]
    details = list(row["extra"].get("substitutions") or [])
    if (proved := row["extra"].get("proved")) is not None:
        details.append(f"{proved} of {row['n']} proved to stand")
    return Line(
        [
            Cell(row["model"]), Cell(row["attack"]), Cell(row["norm"] or ""), eps_cell(row["eps"]),
            html_table.cell(row["seed"]), html_table.cell(row["n"]),
            html_table.percent_cell(row["clean_accuracy"], row["clean_accuracy_low"], row["clean_accuracy_high"]),
            Cell("not trusted", -1.0, "fail") if failed else html_table.percent_cell(*robust),
            html_table.verdict_cell(row["verdict"]),
            Cell("" if failed else distance_cell(row).text, -1.0 if distance is None else distance),
            Cell(f"{row['seconds']:.1f}", row["seconds"]),
            Cell(row["recipe"] + (f" ({'; '.join(details)})" if details else "")),
            Cell(row["extra"].get("mode") or ""),
            Cell(weights[:16], kind="hash"), Cell(row["key"][:16], kind="hash"),
            Cell(versions_text(row["versions"])), Cell(row["why"] or ""), html_table.cell(row["queries"]),
            html_table.cell(row["queries_most"]), Cell(repeat_command(row, sweep), kind="hash"),
        ]
    )  # fmt: skip


def repeat_command(row: PageRow, sweep: Sweep) -> str:
    """What computes the number again and compares it; of a number computed from others, what shows these."""
    evaluated = sweep.specs.get(row["job_id"], {}).get("kind") == "eval"
    return f"robustq replay --job {row['job_id']}" if evaluated else f"robustq logs {row['job_id']}"


def versions_text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def weights_hash(row: PageRow, sweep: Sweep) -> str:
    """Hash of the weights that a row is about: of the training's, or of the file that was given."""
    trained = sweep.sizes.get((row["model"], row["seed"]))
    if trained is not None:
        return trained[1]
    model = sweep.specs.get(row["job_id"], {}).get("model") or {}
    return (model.get("weights") or {}).get("sha256", "")
