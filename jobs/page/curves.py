"""Lines: accuracy by radius under each attack, and by epoch of the trainings."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jobs.page import cells, plot
from jobs.page.charts import Places
from jobs.page.plot import Chart, hundred, slug, span
from jobs.page.ranking import Standing, grouped, mean
from jobs.show import eps_text
from robustlib.settings import CERTIFY

Row = dict[str, Any]


class Point(NamedTuple):
    """A model at a radius: accuracy with its interval, fractions, and whether it is to be trusted."""

    model: str
    eps: float
    accuracy: float
    low: float
    high: float
    trusted: bool


def curves(rows: Sequence[Row], found: Sequence[Standing], order: Places) -> Iterator[Chart]:
    """Accuracy by radius: under the worst case first, then every attack that was run at several radii."""
    for norm in dict.fromkeys(s.norm for s in found):
        kept = [s for s in found if s.norm == norm]
        points = [Point(s.model, s.eps, s.accuracy, s.low, s.high, s.trusted) for s in kept]
        smallest = min(s.eps for s in kept)
        clean = [Point(s.model, 0.0, s.clean, s.clean_low, s.clean_high, s.trusted) for s in kept if s.eps == smallest]
        if len({s.eps for s in kept}) > 1:
            yield curve(f"Worst case, {norm}", slug("curve-worst", norm), norm, [*clean, *points], order)
    within = grouped([row for row in rows if row["eps"] is not None and row["norm"]], "label", "norm")
    for (attack, norm), mine in within.items():
        if attack != "worst-case" and len({row["eps"] for row in mine}) > 1:
            title = f"{attack}, {norm}" if attack != CERTIFY else f"Certified from below, {norm}"
            yield curve(title, slug("curve", attack, norm), norm, by_place(mine), order)


def by_place(rows: Sequence[Row]) -> list[Point]:
    """Rows of one attack as points: means over seeds, intervals from the lowest to the highest end."""
    points = []
    for (model, eps), same in grouped(rows, "model", "eps").items():
        low = min(row["robust_accuracy_low"] for row in same)
        high = max(row["robust_accuracy_high"] for row in same)
        trusted = all(row["verdict"] != "fail" for row in same)
        points.append(Point(model, eps, mean(same, "robust_accuracy"), low, high, trusted))
    return points


def curve(title: str, name: str, norm: str, points: Sequence[Point], order: Places) -> Chart:
    """A line a model. Points that are not trusted are left out, and named."""
    traces, said, lines = [], [], []
    by_model: dict[str, list[Point]] = {}
    for point in points:
        by_model.setdefault(point.model, []).append(point)
    models = sorted(by_model, key=order.__getitem__)
    for model in models:
        mine = sorted((p for p in by_model[model] if p.trusted), key=lambda p: p.eps)
        if mine:
            traces.append(curve_trace(model, order[model], mine))
            first, last = (f"{100 * p.accuracy:.1f} % at {eps_text(p.eps)}" for p in (mine[0], mine[-1]))
            said.append(f"{model} goes from {first} to {last}")
        lines += [
            {
                "model": model,
                "eps": cells.Cell(eps_text(p.eps), p.eps),
                "accuracy %": cells.percent(p.accuracy, p.low, p.high),
            }
            for p in mine
        ]
    out = sorted({point.model for point in points if not point.trusted})
    left = f"Left out where it is not trusted: {', '.join(out)}." if out else ""
    alt = f"Accuracy by radius, {title}: " + "; ".join(said[:12]) + ". The numbers stand below."
    layout = {"xaxis": plot.axis(f"eps ({norm})", rangemode="tozero"), "yaxis": plot.axis("accuracy", **plot.PERCENT)}
    note = " ".join(filter(None, [plot.waiting(len(models)), left]))
    return Chart(name, title, alt, traces, layout, cells.plain(f"t-{name}", title, lines), note)


def curve_trace(model: str, place: int, points: Sequence[Point]) -> plot.Trace:
    y = [p.accuracy for p in points]
    return plot.line(
        model,
        place,
        [p.eps for p in points],
        [hundred(value) for value in y],
        error_y=plot.interval(y, [p.low for p in points], [p.high for p in points]),
        text=[f"eps {eps_text(p.eps)}: {span(p.accuracy, p.low, p.high)}" for p in points],
        hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
    )


def histories(trainings: Sequence[Row], order: Places) -> list[Chart]:
    """Validation accuracy by epoch, clean and under PGD: a fall of the second alone is catastrophic overfitting."""
    charts = []
    for column, word in (("clean_accuracy", "clean"), ("attacked_accuracy", "under PGD")):
        traces, said, lines = [], [], []
        for row in trainings:
            epochs = row["extra"]["history"]
            label = f"{row['model']}, seed {row['seed']}"
            y = [hundred(epoch[column]) for epoch in epochs]
            hover = "%{fullData.name}<br>epoch %{x}: %{y:.1f} %<extra></extra>"
            traces.append(
                plot.line(
                    label,
                    order.get(row["model"], len(order)),
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
                    "last %": cells.percent(epochs[-1][column]),
                    "highest %": cells.percent(best[column]),
                    "in epoch": best["epoch"] + 1,
                }
            )
        title = f"Validation accuracy, {word}"
        alt = f"{title}, by epoch: " + "; ".join(said[:12]) + "."
        layout = {"xaxis": plot.axis("epoch"), "yaxis": plot.axis("accuracy", **plot.PERCENT)}
        name = slug("training", column)
        charts.append(
            Chart(
                name, title, alt, traces, layout, cells.plain(f"t-{name}", title, lines), plot.waiting(len(trainings))
            )
        )
    return charts if trainings else []
