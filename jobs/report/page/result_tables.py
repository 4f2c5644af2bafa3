"""The tables of the page: standings, attacks side by side, distances, classes, checks and audits."""

from collections.abc import Sequence
from typing import Any

from robustlib.checks.thresholds import LIMITS
from robustlib.settings import CERTIFY
from robustq.jobs.report.page import html_table
from robustq.jobs.report.page.html_table import Cell, Column, Table
from robustq.jobs.report.page.image_outcomes import Outcome
from robustq.jobs.report.page.ranking import RadiusRanking, Standing
from robustq.jobs.report.page.sentences import listed
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.results.aggregate import mean, rows_by
from robustq.jobs.results.columns import CheckRow, PageRow
from robustq.jobs.text.numbers import eps_text


def eps_cell(eps: float | None) -> Cell:
    return Cell(eps_text(eps), eps if eps is not None else -1.0)


def at(place: RadiusRanking) -> str:
    """A radius as sentences name it."""
    return f"{place.norm} {eps_text(place.eps)}"


def robust_cell(standing: Standing) -> Cell:
    """The accuracy, or that it is not trusted: then no number stands where one would be compared."""
    if not standing.trusted:
        return Cell("not trusted", -1.0, "fail")
    return html_table.percent_cell(standing.accuracy, standing.low, standing.high)


def leaderboard(found: Sequence[Standing], headlines: Sequence[RadiusRanking]) -> Table:
    """A line a model and radius, the best first."""
    columns = (
        Column("model"), Column("architecture", pick=True), Column("defence", pick=True), Column("norm", pick=True),
        Column("eps", number=True, pick=True), Column("clean %", number=True), Column("robust %", number=True),
        Column("checks", pick=True), Column("rests on"), Column("images", number=True), Column("seeds", number=True),
    )  # fmt: skip
    rows = [
        [
            Cell(s.model),
            Cell(s.rows[0]["arch"] or ""),
            Cell(s.rows[0]["defence"] or "given weights"),
            Cell(s.norm),
            eps_cell(s.eps),
            html_table.percent_cell(s.clean, s.clean_low, s.clean_high),
            robust_cell(s),
            html_table.verdict_cell(s.verdict),
            Cell(s.rests_on),
            html_table.cell(s.n),
            html_table.cell(len(s.rows)),
        ]
        for s in found
    ]
    picked = {"norm": headlines[0].norm, "eps": eps_text(headlines[0].eps)} if headlines else {}
    return Table("leaderboard", "Models by robust accuracy under the worst attack", columns, rows, picked=picked)


def best_by_radius(found: Sequence[RadiusRanking]) -> Table | None:
    """At every radius the best model, and those that the numbers do not tell apart from it."""
    return html_table.table_of(
        "best",
        "The best model at every radius",
        [
            {
                "norm": place.norm,
                "eps": eps_cell(place.eps),
                "most robust": place.best.model if place.best else Cell("none is trusted", None, "fail"),
                "robust %": robust_cell(place.best) if place.best else Cell("", -1.0),
                "not told apart from it": listed([rival.model for rival in place.rivals]),
                "not trusted": listed([s.model for s in place.distrusted]),
            }
            for place in found
        ],
    )


def attacks_table(rows: Sequence[PageRow]) -> Table | None:
    """Accuracy in percent, a line a model and radius, a column an attack: shows which attack a number rests on."""
    rows = [row for row in rows if row["attack"] != CERTIFY]  # a bound from below, no attack
    attacks = list(dict.fromkeys(row["label"] for row in rows if row["eps"]))
    groups = rows_by([row for row in rows if row["eps"]], "model", "norm", "eps", "label")
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (model, norm, eps, attack), same in groups.items():
        head = {"model": model, "norm": norm, "eps": eps_cell(eps)} | dict.fromkeys(attacks, Cell("", -2.0))
        failed = any(row["verdict"] == "fail" for row in same)
        cell = (
            Cell("not trusted", -1.0, "fail")
            if failed
            else html_table.percent_cell(mean([row["robust_accuracy"] for row in same]))
        )
        lines.setdefault((model, norm, eps), head)[attack] = cell
    return html_table.table_of(
        "attacks", "Accuracy in percent under each attack alone", list(lines.values()), live=True
    )


def distances_table(rows: Sequence[PageRow]) -> Table | None:
    """Median distances that minimum-norm attacks found."""
    return html_table.table_of(
        "distances",
        "Median distance to the nearest misclassified image that was found",
        [
            {
                "model": row["model"],
                "attack": row["label"],
                "norm": row["norm"],
                "seed": row["seed"],
                "median distance": Cell("not trusted", -1.0, "fail")
                if row["verdict"] == "fail"
                else row["distance_median"],
            }
            for row in rows
            if row["eps"] is None and row["norm"] is not None
        ],
    )


MOST_CHECKS = 300  # warnings and failures that are listed one by one


def check_summary(sweep: Sweep) -> Table | None:
    """Each check with what it looks for, its limits, and how the results came through, the most severe first."""
    lines = []
    for (name,), same in rows_by(sweep.checks, "name").items():
        limit = LIMITS.get(name)
        values = [check["value"] for check in same if check["value"] is not None]
        lines.append(
            {
                "check": name,
                "looks for": limit.meaning if limit else "",
                "not trusted": sum(check["verdict"] == "fail" for check in same),
                "warnings": sum(check["verdict"] == "warn" for check in same),
                "passed": sum(check["verdict"] == "pass" for check in same),
                "largest value": max(values, default=None),
                "warns above": limit.warn if limit else None,
                "fails above": limit.fail if limit else None,
            }
        )
    lines.sort(key=lambda line: (-line["not trusted"], -line["warnings"], line["check"]))
    return html_table.table_of("check-summary", "Checks and how the results came through them", lines)


def checks_table(sweep: Sweep) -> Table | None:
    """The warnings and failures with their evidence, the most severe first."""
    rows = {row["job_id"]: row for row in sweep.rows}
    found = [check for check in sweep.checks if check["verdict"] != "pass" and check["job_id"] in rows]
    found.sort(key=lambda check: check["verdict"] != "fail")
    lines = [check_line(check, rows[check["job_id"]]) for check in found[:MOST_CHECKS]]
    shown = f"the first {MOST_CHECKS} of {len(found)}" if len(found) > MOST_CHECKS else f"{len(found)}"
    return html_table.table_of("checks", f"Warnings and failures, {shown}", lines, live=True)


def check_line(check: CheckRow, row: PageRow) -> dict[str, Any]:
    return {
        "verdict": html_table.verdict_cell(check["verdict"]),
        "check": check["name"],
        "model": row["model"],
        "attack": row["attack"],
        "norm": row["norm"] or "",
        "eps": eps_cell(row["eps"]),
        "seed": row["seed"],
        "value": check["value"],
        "limit": check["threshold"],
        "what was found": check["note"],
        "images that show it": ", ".join(str(place) for place in check["examples"][:10]),
    }


def audits_table(sweep: Sweep) -> Table | None:
    """What a naive evaluation said, what holds against the best attack that audits tried, and why the two differ."""
    lines = [
        {
            "model": row["model"],
            "norm": row["norm"],
            "eps": eps_cell(row["eps"]),
            "seed": row["seed"],
            "verdict": html_table.verdict_cell(told["verdict"]),
            "naive %": html_table.percent_cell(told["naive_robust_accuracy"]),
            "under the best attack %": html_table.percent_cell(told["adaptive_robust_accuracy"]),
            "cause": told["cause"] or "",
            "attacks tried": len(told["trials"]),
        }
        for row in sweep.rows
        if (told := row["extra"].get("audit")) is not None
    ]
    return html_table.table_of("audits", "Audits of the models", lines)


def classes_table(place: RadiusRanking, outcomes: dict[str, Outcome], names: Sequence[str]) -> Table | None:
    """Robust accuracy by class; of many classes those that fall most and least."""
    if not outcomes:
        return None
    some = next(iter(outcomes.values()))
    there = [k for k in range(len(some.counts)) if some.counts[k]]
    label = [names[k] if k < len(names) else str(k) for k in range(len(some.counts))]
    if len(there) > 20:
        middle = {k: sum(found.attacked_right[k] for found in outcomes.values()) for k in there}
        ranked = sorted(there, key=middle.__getitem__)
        there = [*ranked[:10], *ranked[-5:]]
    lines = [
        {"model": model} | {f"{label[k]} ({some.counts[k]})": shade(float(found.attacked_right[k])) for k in there}
        for model, found in outcomes.items()
    ]
    caption = f"Robust accuracy by class at {at(place)}, in percent; images of the class in brackets"
    return html_table.table_of("classes", caption, lines, live=True)


def shade(share: float) -> Cell:
    """A share with a ground in one of eleven tones."""
    return Cell(f"{100 * share:.0f}", share, f"tone{round(10 * share)}")
