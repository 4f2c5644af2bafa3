"""The charts on one radius: the trade-off, its price, which attack broke what."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustq.jobs.report.page import plotly, table
from robustq.jobs.report.page.image_outcomes import Outcome
from robustq.jobs.report.page.plotly import Chart, hundred, safe, slug
from robustq.jobs.report.page.ranking import Place, Standing
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.text.numbers import eps_text

Row = dict[str, Any]

# A place for each model, the best first: by it a model looks the same on every chart.
Places = dict[str, int]


def looks(found: Sequence[Standing], headline: Sequence[Place], rows: Sequence[Row]) -> Places:
    """Models in the order of the headline's radius, then those that it lacks."""
    names = [
        *(s.model for place in headline for s in place.all),
        *(s.model for s in found),
        *(row["model"] for row in rows),
    ]
    return {model: i for i, model in enumerate(dict.fromkeys(names))}


def tradeoff(place: Place, order: Places) -> Chart:
    """Clean accuracy against robust accuracy at one radius."""
    where = f"{place.norm} {eps_text(place.eps)}"
    kept = [s for s in place.all if s.trusted]
    traces = [
        plotly.point(
            s.model, order[s.model], hundred(s.clean), hundred(s.accuracy),
            error_x=plotly.interval([s.clean], [s.clean_low], [s.clean_high]),
            error_y=plotly.interval([s.accuracy], [s.low], [s.high]),
            hovertemplate="%{fullData.name}<br>clean %{x:.1f} %, robust %{y:.1f} %<extra></extra>",
        )
        for s in kept
    ]  # fmt: skip
    lines = [
        {
            "model": s.model,
            "clean %": table.percent(s.clean, s.clean_low, s.clean_high),
            "robust %": table.percent(s.accuracy, s.low, s.high),
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
        name, "Clean against robust", alt, traces, layout, table.plain(f"t-{name}", "Clean against robust", lines)
    )


def price(place: Place, axis: str, title: str, unit: str, values: dict[str, float], order: Places) -> Chart | None:
    """Robust accuracy against what a model costs; None where no model's price is known."""
    kept = [s for s in place.all if s.trusted and s.model in values]
    if not kept:
        return None
    where = f"{place.norm} {eps_text(place.eps)}"
    traces = [
        plotly.point(
            s.model, order[s.model], values[s.model], hundred(s.accuracy),
            error_y=plotly.interval([s.accuracy], [s.low], [s.high]),
            hovertemplate=f"%{{fullData.name}}<br>%{{x:.4~g}} {unit}, robust %{{y:.1f}} %<extra></extra>",
        )
        for s in kept
    ]  # fmt: skip
    lines = [
        {"model": s.model, f"{axis} ({unit})": values[s.model], "robust %": table.percent(s.accuracy, s.low, s.high)}
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
    return Chart(name, title, alt, traces, layout, table.plain(f"t-{name}", title, lines))


def prices(place: Place, sweep: Sweep, order: Places) -> list[Chart]:
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
        price(place, "training time", "Accuracy against training time", "seconds", seconds, order),
        price(place, "size of the weights", "Accuracy against model size", "MiB", sizes, order),
    ]
    return [chart for chart in found if chart]


def breakers(place: Place, outcomes: dict[str, Outcome]) -> Chart:
    """By model, the shares of images that each attack found, of those misclassified at first, and of robust ones."""
    where = f"{place.norm} {eps_text(place.eps)}"
    attacks = list(
        dict.fromkeys(name for found in outcomes.values() for name in found.broken_by if name not in ("", "clean"))
    )
    parts = {"": "robust", "clean": "misclassified without an attack"}
    parts |= {name: f"misclassified under {name}" for name in attacks}
    models = list(outcomes)
    shares = {
        part: [outcomes[m].broken_by.get(part, 0) / max(sum(outcomes[m].broken_by.values()), 1) for m in models]
        for part in parts
    }
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": safe(parts[part]),
            "y": [safe(m) for m in models],
            "x": [hundred(v) for v in shares[part]],
            "text": [f"{100 * v:.0f}" if v >= 0.06 else "" for v in shares[part]],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "textangle": 0,
            "marker": {
                "color": "#888888"
                if part == "clean"
                else "#009E73"
                if not part
                else ATTACK_COLOURS[i % len(ATTACK_COLOURS)],
                "line": {"color": "#ffffff", "width": 1},
            },
            "hovertemplate": "%{y}<br>%{fullData.name}: %{x:.1f} %<extra></extra>",
        }
        for i, part in enumerate(parts)
    ]
    lines = [
        {"model": m} | {f"{label} %": table.percent(shares[part][i]) for part, label in parts.items()}
        for i, m in enumerate(models)
    ]
    alt = (
        f"Stacked bars, a model each, at {where}: "
        + "; ".join(f"of {m}'s images {100 * shares[''][i]:.1f} % are robust" for i, m in enumerate(models[:12]))
        + "."
    )
    layout = {
        "barmode": "stack",
        "xaxis": plotly.axis("share of the images", range=[0, 100], ticksuffix=" %"),
        "yaxis": plotly.axis("", autorange="reversed"),
    }
    name = slug("breakers", place.norm)
    note = "An image misclassified under several attacks counts for one; the table of attacks below counts each alone."
    title = f"Outcomes of the images at {where}"
    height = 170 + 30 * len(models)
    return Chart(name, title, alt, traces, layout, table.plain(f"t-{name}", title, lines), note, height)


ATTACK_COLOURS = ("#D55E00", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9")
