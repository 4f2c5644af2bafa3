"""The choice of examples of a split: those that are evaluated, and a few that stand for all."""

from typing import Literal

import numpy as np

LOPSIDED = 0.1  # of images, that are of another class than in a choice by chance


def choose(y: np.ndarray, examples: int | Literal["all"], how: str = "first") -> np.ndarray:
    """Places of the chosen examples, rising: the first so many, or all where there are no more.

    how: "stratified" takes of each class as many as is its share, by largest remainder; the first of each.
    y: classes, shape (N,).
    """
    if examples == "all" or examples >= len(y):
        return np.arange(len(y))
    if how == "first":
        return np.arange(examples)
    counts = np.bincount(y)
    # In whole numbers: a remainder must not depend on how a share was rounded.
    quotas, rest = np.divmod(counts.astype(np.int64) * examples, len(y))
    short = examples - quotas.sum()
    quotas[np.argsort(-rest, kind="stable")[:short]] += 1
    order = np.argsort(y, kind="stable")
    starts = np.cumsum(counts) - counts
    return np.sort(np.concatenate([order[s : s + q] for s, q in zip(starts, quotas, strict=True)]))


def spread(n: int, most: int) -> np.ndarray:
    """At most so many places of n, evenly and rising: images of a folder lie by class, the first are all of one."""
    many = min(most, n)
    return np.arange(many) * n // max(many, 1)


def is_lopsided(y: np.ndarray, most: int) -> bool:
    """Whether the first so many are of other classes than all are, in more than a tenth of them beyond what a choice by
    chance has: data lie by class then. y: classes, shape (N,).
    """
    if len(y) <= most:
        return False
    shares = np.bincount(y) / len(y)
    first = np.bincount(y[:most], minlength=len(shares)) / most
    chance = np.sqrt(2 * shares * (1 - shares) / (np.pi * most))  # the mean deviation of a binomial share
    return bool(np.abs(first - shares).sum() / 2 > chance.sum() / 2 + LOPSIDED)


def spread_by_class(y: np.ndarray, most: int) -> np.ndarray:
    """At most so many places, rising: of each class its share, evenly over its own. y: classes, shape (N,)."""
    return np.sort(np.argsort(y, kind="stable")[spread(len(y), most)])
