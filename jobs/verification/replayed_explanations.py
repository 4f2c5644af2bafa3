"""The judgement of an explanation job that ran again: equal to the bit, or how far from it."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.statistics.significance import t_interval

# A mean that moves by less is nobody's finding, however sure: all measures lie on a scale of 1.
SHIFT = 1e-3

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
    if len(old["index"]) != len(new["index"]):
        return True
    for against in np.unique(old["against"]):
        rows = old["against"] == against
        if any(moved_measures(*({name: values[rows] for name, values in some.items()} for some in (old, new)))):
            return True
    return False


def moved_measures(old: Columns, new: Columns) -> Iterator[str]:
    """The measures whose means moved beyond the 95 % interval of their changes, of the same images under one thing."""
    for name in EXPLANATION_MEASURES:
        changes = new[name] - old[name]
        changes = changes[~np.isnan(changes)]
        interval = t_interval(changes)
        if interval is not None and abs(changes.mean()) >= SHIFT and (interval[0] > 0 or interval[1] < 0):
            yield name
