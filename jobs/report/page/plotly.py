"""The parts that charts are made of: colours and marks, traces with intervals, texts that stay texts."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustq.jobs.report.page.html_table import Table

Trace = dict[str, Any]

# Okabe and Ito's colours, which colour-blind readers can tell apart, less yellow and black, which vanish on a light or
# a dark ground; each with a mark and a dash of its own for print without colour.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888")
LINE_MARKS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "x")
LINE_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
MOST_SHOWN = len(LINE_COLOURS)  # lines at first; the legend shows the others


@dataclass(frozen=True)
class Chart:
    """A Plotly figure with what it says in words and in numbers.

    name: unique on the page.  alt: the picture in a sentence or two.  note: what readers should know.
    """

    name: str
    title: str
    alt: str
    data: list[Trace]
    layout: dict[str, Any]
    table: Table | None
    note: str = ""
    height: int = 360

    @property
    def figure(self) -> dict[str, Any]:
        return {"data": self.data, "layout": self.layout, "height": self.height}


def slug(*parts: Any) -> str:
    """A name for files and anchors."""
    return "-".join("".join(c if c.isalnum() or c in "._" else "-" for c in str(part)) for part in parts)


def safe(text: Any) -> str:
    """Text as Plotly shows it unchanged: it takes tags in any text for markup, links among them."""
    return html.escape(str(text), quote=False)


def hundred(value: float) -> float:
    """A fraction as a percentage, rounded to what a chart can show, which keeps the page small."""
    return round(100 * value, 2)


def axis(title: str, **more: Any) -> dict[str, Any]:
    # With a distance of its own the title makes room beside the ticks; without one it may lie on them.
    return {"title": {"text": safe(title), "standoff": 10}, "automargin": True, **more}


PERCENT = {"range": [-2, 102], "ticksuffix": " %", "dtick": 20}


def error_bars(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """Error bars from fractions, in percent."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [hundred(max(h - v, 0)) for v, h in zip(values, high, strict=True)],
        "arrayminus": [hundred(max(v - low_, 0)) for v, low_ in zip(values, low, strict=True)],
        "thickness": 1.2,
        "width": 3,
    }


def span(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def line_style(i: int) -> tuple[str, str, str]:
    """Colour, mark and dash of the i-th model, the same on every chart; of 49 models no two look alike."""
    turn = i // len(LINE_COLOURS)
    return (
        LINE_COLOURS[i % len(LINE_COLOURS)],
        LINE_MARKS[(i + turn) % len(LINE_MARKS)],
        LINE_DASHES[(i + turn) % len(LINE_DASHES)],
    )


def line_trace(name: str, i: int, x: Sequence[float], y: Sequence[float], **more: Any) -> Trace:
    """A line with marks; those of models beyond the colours wait in the legend."""
    colour, mark, dash = line_style(i)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": safe(name),
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "dash": dash, "width": 2},
        "marker": {"symbol": mark, "size": 8},
        "cliponaxis": False,
        "visible": True if i < MOST_SHOWN else "legendonly",
        **more,
    }


def point_trace(name: str, i: int, x: float, y: float, **more: Any) -> Trace:
    """One mark, named in the legend."""
    colour, mark, _ = line_style(i)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(name),
        "x": [x],
        "y": [y],
        "marker": {"color": colour, "symbol": mark, "size": 11},
        "cliponaxis": False,
        **more,
    }


def waiting(n: int, what: str = "models") -> str:
    """What to say where more lines exist than are shown at first."""
    return f"The first {MOST_SHOWN} of {n} {what} are drawn; the legend shows the others." if n > MOST_SHOWN else ""
