"""Means of explanations' measures over images, with their intervals, and the test that tells two models apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustlib.metrics import CLEAN, wilson
from robustlib.settings import EXPLANATION_MEASURES

BOUNDS = {"spearman": (-1.0, 1.0), "ssim": (-1.0, 1.0)}  # of the others 0 and 1

Columns = Mapping[str, np.ndarray]


def explanation_means(columns: Columns) -> list[dict[str, Any]]:
    """A row for each thing that was done to the images, in the order in which they come, CLEAN first.

    columns: see robustlib.evaluation.explanation_stability.  n: images that were explained.  kept: of them those that
    still have the explained class.  Each measure's mean over the images, with the ends of Student's 95 % interval, cut
    where no value can lie; None where there is no value, an interval also for one. Spearman's mean leaves out images
    with a constant map, where it has no value.
    """
    measured = explained_images(columns)
    found = []
    for against in dict.fromkeys(columns["against"].tolist()):
        rows = (columns["against"] == against) & measured
        same = columns["prediction"][rows] == columns["explained"][rows]
        row: dict[str, Any] = {"against": against, "n": int(rows.sum()), "kept": int(same.sum())}
        for name in EXPLANATION_MEASURES:
            row |= mean_with_interval(name, columns[name][rows])
        found.append(row)
    return found


def means_rows(columns: Columns, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the store's table `explanation`, but for the job's number. params: of the job's spec."""
    about = {name: params[name] for name in ("method", "target")}
    return [about | row for row in explanation_means(columns)]


def explained_images(columns: Columns) -> np.ndarray:
    """Which rows are of images that were explained: those that have the explained class as they are."""
    clean = columns["against"] == CLEAN
    right = columns["index"][clean & (columns["prediction"] == columns["explained"])]
    return np.isin(columns["index"], right)


def mean_with_interval(name: str, values: np.ndarray) -> dict[str, float | None]:
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    from robustq.jobs.statistics.significance import t_interval  # SciPy, which a driver without explanations needs not

    low, high = t_interval(values) or (None, None)
    least, most = BOUNDS.get(name, (0.0, 1.0))
    return {
        name: float(values.mean()),
        f"{name}_low": None if low is None else max(low, least),
        f"{name}_high": None if high is None else min(high, most),
    }


def clean_accuracy(columns: Columns) -> dict[str, Any]:
    """The columns of a result row: how many images, and accuracy on them with Wilson's 95 % interval."""
    clean = columns["against"] == CLEAN
    right = columns["prediction"][clean] == columns["label"][clean]
    low, high = wilson(float(right.sum()), len(right))
    accuracy = {"clean_accuracy": float(right.mean()), "clean_accuracy_low": low, "clean_accuracy_high": high}
    return {"n": len(right)} | accuracy


@dataclass(frozen=True)
class Steadier:
    """Two models' measure on the same images. difference: the mean of second minus first, with Student's 95 % interval.

    p: of Wilcoxon's signed-rank test, two-sided (Wilcoxon 1945), images without a difference ranked among the others
    and then left out (Pratt 1959); 1 where no image has one.
    """

    n: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float


def steadier(first: np.ndarray, second: np.ndarray) -> Steadier:
    """Compare one measure of the same images, in the same order, shape (N,); images with a NaN are left out.

    Raises ValueError where none is left.
    """
    from scipy import stats  # a second to load, which only whoever compares has to wait

    from robustq.jobs.statistics.significance import t_interval

    told = ~(np.isnan(first) | np.isnan(second))
    first, second = first[told], second[told]
    if len(first) == 0:
        raise ValueError("expected a measure of at least one image of both, got none")
    moved = second - first
    low, high = t_interval(moved) or (None, None)
    test: Any = stats.wilcoxon(moved, zero_method="pratt") if moved.any() else None
    p = 1.0 if test is None else float(test.pvalue)
    return Steadier(
        len(first),
        float(first.mean()),
        float(second.mean()),
        float(moved.mean()),
        low,
        high,
        1.0 if math.isnan(p) else p,
    )
