"""The judgement of an explanation job that ran again: equal to the bit, or how far from it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.statistics.significance import t_interval

Columns = Mapping[str, np.ndarray]


def differing_images(old: Columns, new: Columns) -> int:
    """How many images have a number that is another; those of both where these are not the same images."""
    if not np.array_equal(old["index"], new["index"]) or not np.array_equal(old["against"], new["against"]):
        return len(np.unique(np.concatenate([old["index"], new["index"]])))
    same = np.logical_and.reduce([same_values(old[name], new[name]) for name in old])
    return len(np.unique(old["index"][~same]))


def same_values(one: np.ndarray, other: np.ndarray) -> Any:
    return (one == other) | ((one != one) & (other != other))  # no number is no number


def any_moved(old: Columns, new: Columns) -> bool:
    """Whether the mean of a measure, under something that was done, moved beyond the 95 % interval of its changes."""
    return len(old["index"]) != len(new["index"]) or any(moved(old, new))


def moved(old: Columns, new: Columns) -> Iterator[bool]:
    for against in np.unique(old["against"]):
        rows = old["against"] == against
        for name in EXPLANATION_MEASURES:
            changes = (new[name] - old[name])[rows]
            interval = t_interval(changes[~np.isnan(changes)])
            yield interval is not None and (interval[0] > 0 or interval[1] < 0)
