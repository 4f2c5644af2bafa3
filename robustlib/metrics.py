"""Numbers from predictions: plain NumPy, so that readers of results need no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

CLEAN = "clean"  # what broke an example that is misclassified as it is
NOTHING = ""  # what broke an example that stands
Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927), as fractions.

    successes: may be fractional, where an example counts by the share of random draws it survives; the interval is then
    wider than it need be, since such a share varies less than a coin.
    """
    if n == 0:
        raise ValueError("expected at least one example to make an interval of, got none")
    p, z2 = successes / n, Z95 * Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n successes the exact bound is 0 and 1; rounding must not put the share outside its own interval.
    return max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))


def accuracy_by_queries(success: np.ndarray, queries: np.ndarray, at: Sequence[int] | np.ndarray) -> np.ndarray:
    """Robust accuracy after so many queries an image, a fraction for each number in `at`.

    success, queries: of robustlib.outcome.Outcome, shape (N,). An image that fell without a query counted, as one that
    is misclassified as it is, has fallen from the start.
    """
    if len(success) == 0:
        raise ValueError("expected at least one example to make an accuracy of, got none")
    needed = np.sort(np.maximum(queries[success], 0))
    return 1 - np.searchsorted(needed, np.asarray(at), side="right") / len(success)


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Counts by true class (row) and predicted class (column), shape (classes, classes)."""
    return np.bincount(label * classes + prediction, minlength=classes * classes).reshape(classes, classes)


def summarise(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Accuracies as fractions with Wilson's 95 % intervals, and distances of the misclassified images found.

    columns: those of robustlib.outcome.Outcome. Distances are those of images that needed an attack: the ones that are
    misclassified as they are lie at 0 and say nothing about it. None where there is no such image.
    """
    n = len(columns["index"])
    row: dict[str, Any] = {"n": n}
    for name in ("clean", "adversarial"):
        accuracy = float(columns[f"{name}_correct"].mean(dtype=np.float64))
        low, high = wilson(accuracy * n, n)
        column = "robust_accuracy" if name == "adversarial" else "clean_accuracy"
        row |= {column: accuracy, f"{column}_low": low, f"{column}_high": high}
    found = columns["distance"][columns["success"] & (columns["broken_by"] != CLEAN)]
    row["any_draw_accuracy"] = float(columns["adversarial_survived"].mean())
    row["distance_median"] = float(np.median(found)) if len(found) else None
    row["distance_median_low"], row["distance_median_high"] = median_interval(found) or (None, None)
    row["distance_mean"] = float(found.mean(dtype=np.float64)) if len(found) else None
    return row | summed_queries(columns)


def median_interval(values: np.ndarray) -> tuple[float, float] | None:
    """A 95 % interval of the median from two order statistics (Thompson 1936): no distribution is assumed.

    The narrowest symmetric pair that holds the median with a chance of at least 95 %, by the binomial distribution of
    how many values lie below it; None for fewer than six values, of which even the extremes hold it less surely.
    """
    n = len(values)
    rank = max(0, int(n / 2 - 5 * math.sqrt(n)))  # ten standard deviations below the middle: no chance lies there
    below = 0.0  # the chance that fewer than `rank` values lie below the median
    while rank < n // 2 and (more := below + fair_coin(n, rank)) <= 0.025:
        below, rank = more, rank + 1
    if rank == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[n - rank])


def fair_coin(n: int, heads: int) -> float:
    """The chance of so many heads in n throws."""
    ways = math.lgamma(n + 1) - math.lgamma(heads + 1) - math.lgamma(n - heads + 1)
    return math.exp(ways - n * math.log(2))


def summed_queries(columns: Mapping[str, np.ndarray]) -> dict[str, int | None]:
    """queries: images that attacks without gradients showed the model, of all examples together, over a search of
    several radii down to this one.  queries_most: of one example at this radius alone, None where those of some are not
    known, as of parts by earlier versions. Both None where none were counted.
    """
    all_, here = (np.asarray(columns.get(name, ()), np.int64) for name in ("queries", "radius_queries"))
    counted, known = all_[all_ >= 0], here[here >= 0]
    return {
        "queries": int(counted.sum()) if len(counted) else None,
        "queries_most": int(known.max()) if len(known) and len(known) >= len(counted) else None,
    }
