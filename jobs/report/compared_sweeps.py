"""Another sweep beside the page's: what the same model came to under the same attack, over the same images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from sqlalchemy import Connection

from robustq.jobs.errors import SpecError
from robustq.jobs.report.page.html_table import Cell, Table, percent_cell, table_of, verdict_cell
from robustq.jobs.report.page.render import Section, environment
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.compare import SAME_ATTACK, Comparison, compared
from robustq.jobs.results.rows import result_rows
from robustq.jobs.text.numbers import eps_text

MOST_PAIRS = 1000  # whose outcomes are read: some milliseconds each


@dataclass(frozen=True)
class Compared:
    """The page's sweep (first) and another one. same: results that are one job of both.  apart: pairs over other
    images.  alone: results of one of them alone.  left_out: pairs beyond MOST_PAIRS.
    """

    first: str
    second: str
    table: Table | None
    same: int
    apart: int
    alone: int
    left_out: int


def compared_section(db: Connection, ids: tuple[int, int], names: tuple[str, str]) -> Section:
    """The section of a page that compares its sweep with another."""
    found = compare_sweeps(result_rows(db, ids[0]), result_rows(db, ids[1]), names, db)
    html = environment().get_template("compared.html").render(found=found).strip()
    return Section("compared", f"Beside {names[1]}", Markup(html), hashlib.sha256(html.encode()).hexdigest()[:16])


def compare_sweeps(
    first: Sequence[ResultRow], second: Sequence[ResultRow], names: tuple[str, str], db: Connection
) -> Compared:
    mine, other = ({key(row): row for row in rows} for rows in (first, second))
    both = [place for place in mine if place in other]
    pairs = [(mine[place], other[place]) for place in both if mine[place]["job_id"] != other[place]["job_id"]]
    lines, apart = [], 0
    for one, two in pairs[:MOST_PAIRS]:
        try:
            lines.append(line(one, compared(db, one, two), names))
        except SpecError:  # other images, or other classes of them
            apart += 1
    caption = f"Robust accuracy of {names[0]} and {names[1]} on the same images, in percent"
    return Compared(
        first=names[0],
        second=names[1],
        table=table_of("compared", caption, lines, live=True),
        same=len(both) - len(pairs),
        apart=apart,
        alone=len(mine) + len(other) - 2 * len(both),
        left_out=max(0, len(pairs) - MOST_PAIRS),
    )


def key(row: ResultRow) -> tuple[object, ...]:
    return (row["model"], *(row[name] for name in SAME_ATTACK))


def line(row: ResultRow, found: Comparison, names: tuple[str, str]) -> dict[str, object]:
    low, high = (f"{100 * found[end]:+.1f}" for end in ("difference_low", "difference_high"))
    trusted = [found["first_verdict"], found["second_verdict"]]
    worst = next((verdict for verdict in ("fail", "warn", None) if verdict in trusted), "pass")
    return {
        "model": row["model"],
        "attack": row["attack"],
        "norm": row["norm"] or "",
        "eps": Cell(eps_text(row["eps"]), row["eps"]),
        "seed": row["seed"],
        "images": found["n"],
        f"{names[0]} %": percent_cell(found["first_accuracy"]),
        f"{names[1]} %": percent_cell(found["second_accuracy"]),
        "difference [95 %]": Cell(f"{100 * found['difference']:+.1f} [{low}, {high}]", found["difference"]),
        "p exact": found["p_exact"],
        "checks": verdict_cell(worst),
    }
