"""The tables of the page: standings, attacks side by side, distances, classes, checks and audits."""

from collections.abc import Sequence
from typing import Any

from robustlib.checks.thresholds import LIMITS
from robustlib.number_text import distinct
from robustlib.settings import CERTIFY
from robustq.jobs.reasons.reasons import limit_of
from robustq.jobs.report.page import html_table
from robustq.jobs.report.page.html_table import Cell, Column, Table
from robustq.jobs.report.page.ranking import RadiusRanking, Standing
from robustq.jobs.report.page.sentences import listed
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.report.pictures.image_outcomes import Outcome
from robustq.jobs.results.aggregate import mean, rows_by, why_of
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import CheckRow, PageRow
from robustq.jobs.results.worst_attack import worst_case_of
from robustq.jobs.statistics.model_pairs import ALPHA
from robustq.jobs.text.footnotes import numbered, with_notes
from robustq.jobs.text.numbers import eps_text, percent


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
        Column("SD over seeds", number=True), Column("checks", pick=True), Column("why"), Column("rests on"),
        Column("images", number=True), Column("seeds", number=True),
    )  # fmt: skip
    marks, notes = numbered([s.cause or None for s in found])
    rows = [
        [
            Cell(s.model),
            Cell(s.rows[0]["arch"] or ""),
            Cell(s.rows[0]["defence"] or "given weights"),
            Cell(s.norm),
            eps_cell(s.eps),
            html_table.percent_cell(s.clean, s.clean_low, s.clean_high),
            robust_cell(s),
            Cell("") if s.deviation is None or not s.trusted else Cell(percent(s.deviation), s.deviation),
            html_table.verdict_cell(s.verdict),
            Cell(mark),
            Cell(s.rests_on),
            html_table.cell(s.n),
            html_table.cell(len(s.rows)),
        ]
        for s, mark in zip(found, marks, strict=True)
    ]
    picked = {"norm": headlines[0].norm, "eps": eps_text(headlines[0].eps)} if headlines else {}
    return Table(
        "leaderboard", "Models by robust accuracy under the worst attack", columns, rows, picked=picked, notes=notes
    )


def compared_table(headline: Sequence[RadiusRanking]) -> Table | None:
    """The others beside the best at the radii of the answers, with the p-value of each and that of all together."""
    return html_table.table_of(
        "compared",
        "The other models beside the best: difference of robust accuracy in points with its 95 % interval",
        [
            {
                "model": one.other.model,
                "beside": place.best.model,
                "norm": place.norm,
                "eps": eps_cell(place.eps),
                "difference": Cell(
                    f"{100 * one.versus.difference:+.1f} [{100 * one.versus.low:.1f}, {100 * one.versus.high:.1f}]",
                    one.versus.difference,
                ),
                "right in the best alone": one.versus.only_first,
                "in the other alone": one.versus.only_second,
                "p": Cell(distinct((one.versus.p, ALPHA), 2)[0], one.versus.p),
                "p_holm": Cell(distinct((one.p_holm, ALPHA), 2)[0], one.p_holm),
                "told apart": "yes" if one.apart else "no",
                "test": one.versus.test,
            }
            for place in headline
            if place.best is not None
            for one in place.against
        ],
        notes=[HOLM],
    )


HOLM = "p_holm is p by Holm's correction for all comparisons with the best at a radius; told apart is below 0.05."


def best_by_radius(found: Sequence[RadiusRanking]) -> Table | None:
    """At every radius the best model, and those that the test does not tell apart from it."""
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
    rows = [row for row in rows if row["eps"] and row["attack"] != CERTIFY]  # that is a bound from below, no attack
    attacks = list(dict.fromkeys(row["label"] for row in rows))
    groups = rows_by(rows, "model", "norm", "eps", "label")
    if WORST_CASE in attacks:  # where one attack alone bears on a radius, its number is that of the worst case
        for (model, norm, eps), here in rows_by(rows, "model", "norm", "eps").items():
            groups.setdefault((model, norm, eps, WORST_CASE), list(worst_case_of(here).rows))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    whys: dict[tuple[Any, ...], list[str]] = {}
    for (model, norm, eps, attack), same in groups.items():
        head = {"model": model, "norm": norm, "eps": eps_cell(eps)} | dict.fromkeys(attacks, Cell("", -2.0))
        failed = any(row["verdict"] == "fail" for row in same)
        cell = (
            Cell("not trusted", -1.0, "fail")
            if failed
            else html_table.percent_cell(mean([row["robust_accuracy"] for row in same]))
        )
        lines.setdefault((model, norm, eps), head)[attack] = cell
        whys.setdefault((model, norm, eps), []).append(why_of(same) or "")
    shown, notes = with_notes(list(lines.values()), ["; ".join(filter(None, whys[place])) for place in lines])
    return html_table.table_of("attacks", "Accuracy in percent under each attack alone", shown, live=True, notes=notes)


def distances_table(rows: Sequence[PageRow]) -> Table | None:
    """Median distances that minimum-norm attacks found, with their intervals."""
    found = [row for row in rows if row["eps"] is None and row["norm"] is not None]
    lines = [
        {
            "model": row["model"],
            "attack": row["label"],
            "norm": row["norm"],
            "seed": row["seed"],
            "median distance [95 %]": distance_cell(row),
        }
        for row in found
    ]
    shown, notes = with_notes(lines, [row["why"] for row in found])
    title = "Median distance to the nearest misclassified image that was found"
    return html_table.table_of("distances", title, shown, notes=[*([ORDER] if found else []), *notes])


ORDER = (
    "The interval is that of two order statistics, of the images for which the attack found a misclassified one; of "
    "fewer than six there is none."
)


def distance_cell(row: PageRow) -> Cell:
    """The median distance with its interval; or that it is not trusted."""
    if row["verdict"] == "fail":
        return Cell("not trusted", -1.0, "fail")
    median, low, high = row["distance_median"], row["distance_median_low"], row["distance_median_high"]
    if median is None:
        return Cell("", -1.0)
    return Cell(f"{median:.4g}" if low is None else f"{median:.4g} [{low:.4g}, {high:.4g}]", median)


MOST_CHECKS = 300  # warnings and failures that are listed one by one


def check_summary(sweep: Sweep) -> Table | None:
    """Each check with what it looks for, its limits, and how the results came through, the most severe first."""
    lines = []
    for (name,), same in rows_by(sweep.checks, "name").items():
        limit = LIMITS.get(name)
        largest = max((check["value"] for check in same if check["value"] is not None), default=None)
        beside = [value for value in (largest, limit and limit.warn, limit and limit.fail) if value is not None]
        words = dict(zip(beside, distinct(beside, 4), strict=True))
        lines.append(
            {
                "check": name,
                "looks for": limit.meaning if limit else "",
                "not trusted": sum(check["verdict"] == "fail" for check in same),
                "warnings": sum(check["verdict"] == "warn" for check in same),
                "passed": sum(check["verdict"] == "pass" for check in same),
                "largest value": words_cell(largest, words),
                "warns above": words_cell(limit.warn if limit else None, words),
                "fails above": words_cell(limit.fail if limit else None, words),
            }
        )
    lines.sort(key=lambda line: (-line["not trusted"], -line["warnings"], line["check"]))
    return html_table.table_of("check-summary", "Checks and how the results came through them", lines)


def words_cell(value: float | None, words: dict[float, str]) -> Cell:
    """A number with the digits that tell it from those beside it."""
    return Cell("") if value is None else Cell(words[value], value)


def checks_table(sweep: Sweep) -> Table | None:
    """The warnings and failures with their evidence, the most severe first."""
    rows = {row["job_id"]: row for row in sweep.rows}
    found = [check for check in sweep.checks if check["verdict"] != "pass" and check["job_id"] in rows]
    found.sort(key=lambda check: check["verdict"] != "fail")
    lines = [check_line(check, rows[check["job_id"]]) for check in found[:MOST_CHECKS]]
    shown = f"the first {MOST_CHECKS} of {len(found)}" if len(found) > MOST_CHECKS else f"{len(found)}"
    return html_table.table_of("checks", f"Warnings and failures, {shown}", lines, live=True)


def check_line(check: CheckRow, row: PageRow) -> dict[str, Any]:
    limit = limit_of(check)
    beside = [value for value in (check["value"], limit) if value is not None]
    words = dict(zip(beside, distinct(beside, 4), strict=True))
    return {
        "verdict": html_table.verdict_cell(check["verdict"]),
        "check": check["name"],
        "model": row["model"],
        "attack": row["attack"],
        "norm": row["norm"] or "",
        "eps": eps_cell(row["eps"]),
        "seed": row["seed"],
        "value": words_cell(check["value"], words),
        "limit": words_cell(limit, words),
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
