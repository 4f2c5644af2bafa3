"""The charts on one radius: the trade-off, its price, which attack broke what, what a setting of a grid does."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustq.jobs.report.page import html_table, plotly
from robustq.jobs.report.page.plotly import Chart, hundred, safe, slug, span
from robustq.jobs.report.page.ranking import RadiusRanking, Standing
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.report.pictures.image_outcomes import Outcome
from robustq.jobs.results.columns import PageRow
from robustq.jobs.text.grid_names import grid_name, grid_settings, value_of
from robustq.jobs.text.numbers import eps_text

# A place for each model, the best first: by it a model looks the same on every chart.
ModelOrder = dict[str, int]


def model_order(found: Sequence[Standing], headline: Sequence[RadiusRanking], rows: Sequence[PageRow]) -> ModelOrder:
    """Models in the order of the headline's radius, then those that it lacks."""
    names = [
        *(s.model for place in headline for s in place.all),
        *(s.model for s in found),
        *(row["model"] for row in rows),
    ]
    return {model: i for i, model in enumerate(dict.fromkeys(names))}


def tradeoff_chart(place: RadiusRanking, order: ModelOrder) -> Chart:
    """Clean accuracy against robust accuracy at one radius."""
    where = f"{place.norm} {eps_text(place.eps)}"
    kept = [s for s in place.all if s.trusted]
    traces = [
        plotly.point_trace(
            s.model, order[s.model], hundred(s.clean), hundred(s.accuracy),
            error_x=plotly.error_bars([s.clean], [s.clean_low], [s.clean_high]),
            error_y=plotly.error_bars([s.accuracy], [s.low], [s.high]),
            hovertemplate="%{fullData.name}<br>clean %{x:.1f} %, robust %{y:.1f} %<extra></extra>",
        )
        for s in kept
    ]  # fmt: skip
    lines = [
        {
            "model": s.model,
            "clean %": html_table.percent_cell(s.clean, s.clean_low, s.clean_high),
            "robust %": html_table.percent_cell(s.accuracy, s.low, s.high),
        }
        for s in kept
    ]
    best = max(kept, key=lambda s: s.accuracy, default=None)
    alt = f"Clean accuracy across, robust accuracy at {where} upwards, a mark a model." + (
        f" Highest is {best.model} with {100 * best.accuracy:.1f} % robust and {100 * best.clean:.1f} % clean."
        if best
        else ""
    )
    layout = {
        "xaxis": plotly.axis("clean accuracy", ticksuffix=" %"),
        "yaxis": plotly.axis(f"robust accuracy at {where}", ticksuffix=" %", rangemode="tozero"),
    }
    name = slug("tradeoff", place.norm)
    return Chart(
        name,
        "Clean against robust",
        alt,
        traces,
        layout,
        html_table.table_of(f"t-{name}", "Clean against robust", lines),
    )


def price_chart(
    place: RadiusRanking, axis: str, title: str, unit: str, values: dict[str, float], order: ModelOrder
) -> Chart | None:
    """Robust accuracy against what a model costs; None where no model's price is known."""
    kept = [s for s in place.all if s.trusted and s.model in values]
    if not kept:
        return None
    where = f"{place.norm} {eps_text(place.eps)}"
    traces = [
        plotly.point_trace(
            s.model, order[s.model], values[s.model], hundred(s.accuracy),
            error_y=plotly.error_bars([s.accuracy], [s.low], [s.high]),
            hovertemplate=f"%{{fullData.name}}<br>%{{x:.4~g}} {unit}, robust %{{y:.1f}} %<extra></extra>",
        )
        for s in kept
    ]  # fmt: skip
    lines = [
        {
            "model": s.model,
            f"{axis} ({unit})": values[s.model],
            "robust %": html_table.percent_cell(s.accuracy, s.low, s.high),
        }
        for s in kept
    ]
    cheap, dear = min(values[s.model] for s in kept), max(values[s.model] for s in kept)
    alt = f"{axis} across, from {cheap:.3g} to {dear:.3g} {unit}; robust accuracy at {where} upwards; a mark a model."
    wide = dear > 30 * cheap > 0
    layout = {
        "xaxis": plotly.axis(f"{axis} ({unit})", **({"type": "log"} if wide else {"rangemode": "tozero"})),
        "yaxis": plotly.axis(f"robust accuracy at {where}", ticksuffix=" %", rangemode="tozero"),
    }
    name = slug("price", axis, place.norm)
    return Chart(name, title, alt, traces, layout, html_table.table_of(f"t-{name}", title, lines))


def price_charts(place: RadiusRanking, sweep: Sweep, order: ModelOrder) -> list[Chart]:
    """Accuracy against training time and against the size of the weights, means over seeds."""
    seconds = {
        m: float(np.mean([t["seconds"] for t in sweep.trainings if t["model"] == m]))
        for m in {t["model"] for t in sweep.trainings}
    }
    models = {model for model, _ in sweep.sizes}
    sizes = {
        m: float(np.mean([size for (model, _), (size, _) in sweep.sizes.items() if model == m])) / 2**20 for m in models
    }
    found = [
        price_chart(place, "training time", "Accuracy against training time", "seconds", seconds, order),
        price_chart(place, "size of the weights", "Accuracy against model size", "MiB", sizes, order),
    ]
    return [chart for chart in found if chart]


def breakers_chart(place: RadiusRanking, outcomes: dict[str, Outcome]) -> Chart:
    """By model, the shares of images that each attack found, of those misclassified at first, and of robust ones."""
    where = f"{place.norm} {eps_text(place.eps)}"
    models = list(outcomes)
    fates = fates_of(outcomes)
    traces = [fate_bars(fate, models) for fate in fates]
    lines = [
        {"model": m} | {f"{fate.label} %": html_table.percent_cell(fate.shares[i]) for fate in fates}
        for i, m in enumerate(models)
    ]
    robust = fates[0].shares
    said = "; ".join(f"of {m}'s images {100 * robust[i]:.1f} % are robust" for i, m in enumerate(models[:12]))
    layout = {
        "barmode": "stack",
        "xaxis": plotly.axis("share of the images", range=[0, 100], ticksuffix=" %"),
        "yaxis": plotly.axis("", autorange="reversed"),
    }
    name = slug("breakers", place.norm)
    title = f"Outcomes of the images at {where}"
    return Chart(
        name,
        title,
        f"Stacked bars, a model each, at {where}: {said}.",
        traces,
        layout,
        html_table.table_of(f"t-{name}", title, lines),
        "An image misclassified under several attacks counts for one; the table of attacks below counts each alone.",
        170 + 30 * len(models),
    )


@dataclass(frozen=True)
class Fate:
    """What may become of an image.  shares: of each model's images, fractions."""

    label: str
    colour: str
    shares: list[float]


ROBUST_COLOUR, CLEAN_COLOUR = "#009E73", "#888888"
ATTACK_COLOURS = ("#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#0072B2")


def fates_of(outcomes: dict[str, Outcome]) -> list[Fate]:
    """Robust images first, then those misclassified without an attack, then those that each attack found."""
    found = dict.fromkeys(name for outcome in outcomes.values() for name in outcome.broken_by)
    attacks = [name for name in found if name not in ("", "clean")]

    def shares(name: str) -> list[float]:
        return [one.broken_by.get(name, 0) / max(sum(one.broken_by.values()), 1) for one in outcomes.values()]

    fates = [
        Fate("robust", ROBUST_COLOUR, shares("")),
        Fate("misclassified without an attack", CLEAN_COLOUR, shares("clean")),
    ]
    for i, name in enumerate(attacks):
        fates.append(Fate(f"misclassified under {name}", ATTACK_COLOURS[i % len(ATTACK_COLOURS)], shares(name)))
    return fates


def fate_bars(fate: Fate, models: Sequence[str]) -> plotly.Trace:
    """A part of each model's bar."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": safe(fate.label),
        "y": [safe(m) for m in models],
        "x": [hundred(v) for v in fate.shares],
        "text": [f"{100 * v:.0f}" if v >= 0.06 else "" for v in fate.shares],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "marker": {"color": fate.colour, "line": {"color": "#ffffff", "width": 1}},
        "hovertemplate": "%{y}<br>%{fullData.name}: %{x:.1f} %<extra></extra>",
    }


Lines = Mapping[str, list[tuple[str, Standing]]]  # by what a line is called, each value as it was written


def setting_charts(headline: Sequence[RadiusRanking]) -> Iterator[Chart]:
    """For each setting of a grid, the worst case at the radius that the answer is about."""
    for place in headline:
        names = [name for s in place.all for name in grid_settings(s.model)[1]]
        for setting in dict.fromkeys(names):
            lines = lines_by(place.all, setting)
            if any(len(points) > 1 for points in lines.values()):
                yield setting_chart(setting, place, lines)


def lines_by(standings: Sequence[Standing], setting: str) -> dict[str, list[tuple[str, Standing]]]:
    """Models that differ in this setting alone, together."""
    found: dict[str, list[tuple[str, Standing]]] = {}
    place: dict[str, Any] = {}
    for s in standings:
        base, settings = grid_settings(s.model)
        if setting in settings:
            value = settings.pop(setting)
            name = grid_name(base, settings) if settings else base
            found.setdefault(name, []).append((value, s))
            place[name] = (base, [setting_order(other) for other in settings.values()])
    names = sorted(found, key=place.__getitem__)
    return {name: sorted(found[name], key=lambda point: setting_order(point[0])) for name in names}


def setting_order(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then texts."""
    value = value_of(text)
    return (True, 0.0, text) if isinstance(value, str) else (False, float(value), text)


def setting_chart(setting: str, place: RadiusRanking, lines: Lines) -> Chart:
    """A line a model. Points that are not trusted are left out, and named."""
    traces, said, rows = [], [], []
    numbers = all(not isinstance(value_of(text), str) for points in lines.values() for text, _ in points)
    for i, (name, points) in enumerate(lines.items()):
        kept = [(text, s) for text, s in points if s.trusted]
        if kept:
            x: list[Any] = [value_of(text) if numbers else text for text, _ in kept]
            y = [s.accuracy for _, s in kept]
            traces.append(
                plotly.line_trace(
                    name,
                    i,
                    x,
                    [hundred(value) for value in y],
                    error_y=plotly.error_bars(y, [s.low for _, s in kept], [s.high for _, s in kept]),
                    text=[f"{setting}={text}: {span(s.accuracy, s.low, s.high)}" for text, s in kept],
                    hovertemplate="%{fullData.name}<br>%{text}<extra></extra>",
                )
            )
            first, last = (f"{100 * s.accuracy:.1f} % at {text}" for text, s in (kept[0], kept[-1]))
            said.append(f"{name} goes from {first} to {last}")
        rows += [
            {
                "model": name,
                setting: html_table.Cell(text, setting_order(text)[1] if numbers else None),
                "accuracy %": html_table.percent_cell(s.accuracy, s.low, s.high),
            }
            for text, s in kept
        ]
    title = f"By {setting}, worst case {place.norm} {eps_text(place.eps)}"
    name = slug("setting", setting, place.norm)
    alt = f"Accuracy by {setting}, {title}: " + "; ".join(said[:12]) + ". The numbers are below."
    out = sorted({s.model for points in lines.values() for _, s in points if not s.trusted})
    left = f"Left out where it is not trusted: {', '.join(out)}." if out else ""
    layout = {
        "xaxis": plotly.axis(setting, **({} if numbers else {"type": "category"})),
        "yaxis": plotly.axis("accuracy", **plotly.PERCENT),
    }
    note = " ".join(filter(None, [plotly.waiting(len(lines)), left]))
    return Chart(name, title, alt, traces, layout, html_table.table_of(f"t-{name}", title, rows), note)
