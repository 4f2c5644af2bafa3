"""Numbers as text: percent, radii, intervals."""

import math

from robustlib.checks.thresholds import FAIL
from robustq.jobs.text.tables import Row


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def times(factor: float) -> str:
    """By how much something is magnified: three digits, and no power of ten."""
    rounded = float(f"{factor:.3g}")
    return f"{rounded:.3g}" if rounded < 1000 else f"{rounded:,.0f}".replace(",", " ")


def times_text(factor: float) -> str:
    """The same in words: "1 time", "2.5 times"."""
    told = times(factor)
    return f"{told} time" if told == "1" else f"{told} times"


def eps_text(eps: float | None) -> str:
    """A radius as people write it: n/255 where it is one, unless the plain number is shorter."""
    if eps is None:
        return ""
    if not math.isfinite(eps):  # of a card from elsewhere
        return f"{eps:g}"
    steps = eps * 255
    whole = abs(steps - round(steps)) < 1e-9
    return f"{round(steps)}/255" if whole and len(f"{eps:g}") > 5 else f"{eps:g}"


def with_interval(row: Row, column: str) -> str:
    """An accuracy in percent with its 95 % interval."""
    return f"{percent(row[column])} {interval_text(row, column)}"


def interval_text(row: Row, column: str) -> str:
    return f"[{percent(row[f'{column}_low'])}, {percent(row[f'{column}_high'])}]"


def trusted(row: Row) -> str:
    """The robust accuracy, unless a check says that it is none."""
    return unless_failed(with_interval(row, "robust_accuracy"), row["robust_accuracy"], row["verdict"])


def unless_failed(text: str, accuracy: float | None, *verdicts: str | None) -> str:
    """The text for an accuracy, or, where a check failed, that."""
    return f"not trusted ({percent(accuracy)})" if FAIL in verdicts else text
