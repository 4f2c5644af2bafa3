"""Lines: accuracy by radius under each attack, by queries of those without gradients, by epoch of the trainings."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection

from robustlib.metrics import accuracy_by_queries
from robustlib.settings import CERTIFY
from robustq.jobs.report.page import html_table, plotly
from robustq.jobs.report.page.cache import PageCache, QueryCounts
from robustq.jobs.report.page.charts import ModelOrder
from robustq.jobs.report.page.plotly import Chart, hundred, slug, span
from robustq.jobs.report.page.ranking import RadiusRanking, Standing
from robustq.jobs.results.aggregate import mean, rows_by
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import PageRow, Training
from robustq.jobs.text.numbers import eps_text

QUERY_POINTS = 24  # of a line


class Point(NamedTuple):
    """A model at a radius: accuracy with its interval, fractions, and whether it is to be trusted."""

    model: str
    eps: float
    accuracy: float
    low: float
    high: float
    trusted: bool


def radius_charts(rows: Sequence[PageRow], found: Sequence[Standing], order: ModelOrder) -> Iterator[Chart]:
    """Accuracy by radius: under the worst case first, then every attack that was run at several radii."""
    for norm in dict.fromkeys(s.norm for s in found):
        kept = [s for s in found if s.norm == norm]
        points = [Point(s.model, s.eps, s.accuracy, s.low, s.high, s.trusted) for s in kept]
        smallest = min(s.eps for s in kept)
        clean = [Point(s.model, 0.0, s.clean, s.clean_low, s.clean_high, s.trusted) for s in kept if s.eps == smallest]
        if len({s.eps for s in kept}) > 1:
            yield radius_chart(f"Worst case, {norm}", slug("curve-worst", norm), norm, [*clean, *points], order)
    within = rows_by([row for row in rows if row["eps"] is not None and row["norm"]], "label", "norm")
    for (attack, norm), mine in within.items():
        if attack != WORST_CASE and len({row["eps"] for row in mine}) > 1:
            title = f"{attack}, {norm}" if attack != CERTIFY else f"Certified from below, {norm}"
            yield radius_chart(title, slug("curve", attack, norm), norm, by_place(mine), order)


def by_place(rows: Sequence[PageRow]) -> list[Point]:
    """Rows of one attack as points: means over seeds, intervals from the lowest to the highest end."""
    points = []
    for (model, eps), same in rows_by(rows, "model", "eps").items():
        low = min(row["robust_accuracy_low"] for row in same)
        high = max(row["robust_accuracy_high"] for row in same)
        trusted = all(row["verdict"] != "fail" for row in same)
        points.append(Point(model, eps, mean([row["robust_accuracy"] for row in same]), low, high, trusted))
    return points


def radius_chart(title: str, name: str, norm: str, points: Sequence[Point], order: ModelOrder) -> Chart:
    """A line a model. Points that are not trusted are left out, and named."""
    traces, said, lines = [], [], []
    by_model: dict[str, list[Point]] = {}
    for point in points:
        by_model.setdefault(point.model, []).append(point)
    models = sorted(by_model, key=order.__getitem__)
    for model in models:
        mine = sorted((p for p in by_model[model] if p.trusted), key=lambda p: p.eps)
        if mine:
            traces.append(radius_trace(model, order[model], mine))
            first, last = (f"{100 * p.accuracy:.1f} % at {eps_text(p.eps)}" for p in (mine[0], mine[-1]))
            said.append(f"{model} goes from {first} to {last}")
        lines += [
            {
                "model": model,
                "eps": html_table.Cell(eps_text(p.eps), p.eps),
                "accuracy %": html_table.percent_cell(p.accuracy, p.low, p.high),
            }
            for p in mine
        ]
    out = sorted({point.model for point in points if not point.trusted})
    left = f"Left out where it is not trusted: {', '.join(out)}." if out else ""
    alt = f"Accuracy by radius, {title}: " + "; ".join(said[:12]) + ". The numbers are below."
    layout = {
        "xaxis": plotly.axis(f"eps ({norm})", rangemode="tozero"),
        "yaxis": plotly.axis("accuracy", **plotly.PERCENT),
    }
    note = " ".join(filter(None, [plotly.waiting(len(models)), left]))
    return Chart(name, title, alt, traces, layout, html_table.table_of(f"t-{name}", title, lines), note)


def radius_trace(model: str, place: int, points: Sequence[Point]) -> plotly.Trace:
    y = [p.accuracy for p in points]
    return plotly.line_trace(
        model,
        place,
        [p.eps for p in points],
        [hundred(value) for value in y],
        error_y=plotly.error_bars(y, [p.low for p in points], [p.high for p in points]),
        text=[f"eps {eps_text(p.eps)}: {span(p.accuracy, p.low, p.high)}" for p in points],
        hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
    )


def query_charts(
    db: Connection,
    rows: Sequence[PageRow],
    headline: Sequence[RadiusRanking],
    order: ModelOrder,
    counts: dict[int, int | None],
    cache: PageCache,
) -> Iterator[Chart]:
    """Accuracy by queries for each attack that counted them, at the radius that the answer is about.

    counts: of queries by job, see `query_totals`.
    """
    for place in headline:
        here = [row for row in rows if (row["norm"], row["eps"]) == (place.norm, place.eps)]
        counted = [row for row in here if counts.get(row["job_id"]) is not None]
        for (attack,), mine in rows_by(counted, "label").items():
            chart = query_chart(db, attack, place, mine, order, cache)
            yield replace(chart, note=" ".join(filter(None, [joint_search(mine), chart.note])))


def joint_search(rows: Sequence[PageRow]) -> str:
    """What queries are where several radii were one search."""
    joint = [row for row in rows if row["extra"].get("curve_seconds") is not None]
    if not joint:
        return ""
    most = max((row["queries_most"] for row in joint if row["queries_most"] is not None), default=None)
    here = "" if most is None else f" At this radius alone no image took more than {most}."
    return (
        f"Several radii were one search: an image's queries are those from its largest radius down to this one.{here}"
    )


def query_chart(
    db: Connection, attack: str, place: RadiusRanking, rows: Sequence[PageRow], order: ModelOrder, cache: PageCache
) -> Chart:
    """A line a model, the mean over its seeds. Models that are not trusted are left out, and named."""
    out = sorted({row["model"] for row in rows if row["verdict"] == "fail"})
    found: dict[str, list[QueryCounts]] = {}
    for row in rows:
        if row["model"] not in out and (counts := cache.query_counts(db, row["job_id"])) is not None:
            found.setdefault(row["model"], []).append(counts)
    budget = max((int(run.queries.max()) for runs in found.values() for run in runs), default=1)
    at = np.unique(np.geomspace(1, max(budget, 1), QUERY_POINTS).round().astype(int))
    traces, said, lines = [], [], []
    for model in sorted(found, key=order.__getitem__):
        y = np.mean([accuracy_by_queries(run.success, run.queries, at) for run in found[model]], axis=0)
        hover = "%{fullData.name}<br>%{x} queries: %{y:.1f} %<extra></extra>"
        traces.append(plotly.line_trace(model, order[model], at.tolist(), [hundred(v) for v in y], hovertemplate=hover))
        said.append(f"{model} is at {100 * y[-1]:.1f} % after {budget} queries")
        lines.append(
            {"model": model} | {f"% after {n}": html_table.percent_cell(y[at <= n][-1]) for n in query_steps(budget)}
        )
    title = f"{attack}, {place.norm} {eps_text(place.eps)}"
    name = slug("queries", attack, place.norm)
    alt = f"Accuracy by queries an image, {title}: " + "; ".join(said[:12]) + ". The numbers are below."
    axes = {"xaxis": plotly.axis("queries an image", type="log"), "yaxis": plotly.axis("accuracy", **plotly.PERCENT)}
    left = f"Left out where it is not trusted: {', '.join(out)}." if out else ""
    note = " ".join(filter(None, [plotly.waiting(len(found)), left]))
    return Chart(name, title, alt, traces, axes, html_table.table_of(f"t-{name}", title, lines), note)


def query_steps(budget: int) -> list[int]:
    """The numbers of queries that the table has columns for."""
    return sorted({max(1, budget // part) for part in (100, 10, 2, 1)})


def training_charts(trainings: Sequence[Training], order: ModelOrder) -> list[Chart]:
    """Validation accuracy by epoch, clean and under PGD: a fall of the second alone is catastrophic overfitting."""
    charts = []
    seeds = len({row["seed"] for row in trainings}) > 1  # then each has a colour of its own
    for column, word in (("clean_accuracy", "clean"), ("attacked_accuracy", "under PGD")):
        traces, said, lines = [], [], []
        for place, row in enumerate(trainings):
            epochs = row["extra"]["history"]
            label = f"{row['model']}, seed {row['seed']}"
            y = [hundred(epoch[column]) for epoch in epochs]
            hover = "%{fullData.name}<br>epoch %{x}: %{y:.1f} %<extra></extra>"
            traces.append(
                plotly.line_trace(
                    label,
                    place if seeds else order.get(row["model"], len(order)),
                    [epoch["epoch"] + 1 for epoch in epochs],
                    y,
                    hovertemplate=hover,
                )
            )
            said.append(f"{label} ends at {y[-1]:.1f} %")
            best = max(epochs, key=lambda epoch: epoch[column])
            lines.append(
                {
                    "training": label,
                    "epochs": len(epochs),
                    "last %": html_table.percent_cell(epochs[-1][column]),
                    "highest %": html_table.percent_cell(best[column]),
                    "in epoch": best["epoch"] + 1,
                }
            )
        title = f"Validation accuracy, {word}"
        alt = f"{title}, by epoch: " + "; ".join(said[:12]) + "."
        layout = {"xaxis": plotly.axis("epoch"), "yaxis": plotly.axis("accuracy", **plotly.PERCENT)}
        name = slug("training", column)
        charts.append(
            Chart(
                name,
                title,
                alt,
                traces,
                layout,
                html_table.table_of(f"t-{name}", title, lines),
                plotly.waiting(len(trainings), "trainings" if seeds else "models"),
            )
        )
    return charts if trainings else []
