"""Accuracy by queries: how far each attack without gradients got with so many images shown to the model."""

from collections.abc import Iterator, Sequence

import numpy as np
from sqlalchemy import Connection

from robustlib.metrics import accuracy_by_queries
from robustq.jobs.report.page import html_table, plotly
from robustq.jobs.report.page.charts import Places
from robustq.jobs.report.page.image_outcomes import Kept, read
from robustq.jobs.report.page.plotly import Chart, hundred, slug
from robustq.jobs.report.page.ranking import Place
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.columns import PageRow
from robustq.jobs.text.numbers import eps_text

POINTS = 24  # of a line


def spent(
    db: Connection, rows: Sequence[PageRow], headline: Sequence[Place], order: Places, counts: dict[int, int | None],
    kept: Kept,
) -> Iterator[Chart]:  # fmt: skip
    """A chart for each attack that counted its queries, at the radius that the answer is about.

    counts: of queries by job, from robustq.jobs.report.page.image_outcomes.
    """
    for place in headline:
        here = [row for row in rows if (row["norm"], row["eps"]) == (place.norm, place.eps)]
        counted = [row for row in here if counts.get(row["job_id"]) is not None]
        for (attack,), mine in rows_by(counted, "label").items():
            yield chart(db, attack, place, mine, order, kept)


def chart(db: Connection, attack: str, place: Place, rows: Sequence[PageRow], order: Places, kept: Kept) -> Chart:
    """A line a model, the mean over its seeds. Models that are not trusted are left out, and named."""
    out = sorted({row["model"] for row in rows if row["verdict"] == "fail"})
    there = {
        model: [one for row in same if (one := needed(db, row["job_id"], kept)) is not None]
        for (model,), same in rows_by(rows, "model").items()
        if model not in out
    }
    found = {model: runs for model, runs in there.items() if runs}
    budget = max((int(asked.max()) for runs in found.values() for _, asked in runs), default=1)
    at = np.unique(np.geomspace(1, max(budget, 1), POINTS).round().astype(int))
    traces, said, lines = [], [], []
    for model in sorted(found, key=order.__getitem__):
        y = np.mean([accuracy_by_queries(*run, at) for run in found[model]], axis=0)
        hover = "%{fullData.name}<br>%{x} queries: %{y:.1f} %<extra></extra>"
        traces.append(plotly.line(model, order[model], at.tolist(), [hundred(v) for v in y], hovertemplate=hover))
        said.append(f"{model} is at {100 * y[-1]:.1f} % after {budget} queries")
        lines.append(
            {"model": model} | {f"% after {n}": html_table.percent_cell(y[at <= n][-1]) for n in steps(budget)}
        )
    title = f"{attack}, {place.norm} {eps_text(place.eps)}"
    name = slug("queries", attack, place.norm)
    alt = f"Accuracy by queries an image, {title}: " + "; ".join(said[:12]) + ". The numbers stand below."
    axes = {"xaxis": plotly.axis("queries an image", type="log"), "yaxis": plotly.axis("accuracy", **plotly.PERCENT)}
    left = f"Left out where it is not trusted: {', '.join(out)}." if out else ""
    note = " ".join(filter(None, [plotly.waiting(len(found)), left]))
    return Chart(name, title, alt, traces, axes, html_table.table_of(f"t-{name}", title, lines), note)


def steps(budget: int) -> list[int]:
    """The numbers of queries that the table has columns for."""
    return sorted({max(1, budget // part) for part in (100, 10, 2, 1)})


def needed(db: Connection, job_id: int, kept: Kept) -> tuple[np.ndarray, np.ndarray] | None:
    """Which images fell, and the queries of each; None where the store lost them."""
    if ("needed", job_id) not in kept and (columns := read(db, job_id)) is not None:
        kept["needed", job_id] = columns["success"], columns["queries"]
    return kept.get(("needed", job_id))
