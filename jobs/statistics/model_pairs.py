"""Two models compared, each with its seeds: which test fits, its p-value and the interval of their difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from robustlib.number_text import counted
from robustq.jobs.statistics.significance import (
    ROUNDING,
    fisher_exact,
    holm,
    is_constant,
    paired,
    standard_error,
    without_spread,
)

ALPHA = 0.05  # two models are told apart where a corrected p-value is below this


@dataclass(frozen=True)
class Seen:
    """What a model did with one seed. index, label: of its images.  right: whether each was classified correctly, or of
    a randomised model in which share of draws; shape (N,) each, in the order of the index.
    """

    index: np.ndarray
    label: np.ndarray
    right: np.ndarray

    @classmethod
    def counted(cls, accuracy: float, n: int) -> "Seen":
        """That of images of which only their number is known: they are nobody else's."""
        return cls(np.zeros(0, int), np.zeros(0, int), (np.arange(n) < round(accuracy * n)).astype(np.float64))


@dataclass(frozen=True)
class Versus:
    """Two models compared.  difference: second minus first, low and high the ends of its 95 % interval.

    p: two-sided.  test: by which test, in words.  only_first, only_second: images that one got right and the other did
    not; None where the images are not the same, or there are several seeds.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    only_first: int | None = None
    only_second: int | None = None


def versus(first: Sequence[Seen], second: Sequence[Seen]) -> Versus:
    """Compare two models, each with its seeds: exactly where both have one, else by a t-test for seeds and images.

    McNemar's exact test where the images are the same, Fisher's where they are not. Over several seeds, and for
    randomised models, the variances of the seeds and of the images add, with Welch and Satterthwaite's degrees of
    freedom (Welch 1947): of seeds that of the mean over them, of the same images that of each image's difference. Where
    none of them varies the test is `without_variance`.
    """
    some = first[0]
    same = bool(len(some.index)) and all(
        same_values(one.index, some.index) and same_values(one.label, some.label) for one in (*first, *second)
    )
    fixed = all(np.isin(one.right, (0, 1)).all() for one in (*first, *second))
    if fixed and len(first) == len(second) == 1:
        one, other = first[0].right, second[0].right
        return paired_versus(one, other) if same else unpaired_versus(one, other)
    return welch(first, second, same=same)


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or np.array_equal(one, other)


def paired_versus(one: np.ndarray, other: np.ndarray) -> Versus:
    found = paired(one, other)
    test = f"McNemar's exact test on the same {counted(found.n, 'image')}"
    counts = (found.only_first, found.only_second)
    return Versus(found.difference, found.low, found.high, found.p_exact, test, *counts)


def unpaired_versus(one: np.ndarray, other: np.ndarray) -> Versus:
    """The interval is Newcombe's, of Wilson's (Newcombe 1998, method 10)."""
    p, q = float(one.mean()), float(other.mean())
    p_value = fisher_exact(int(one.sum()), len(one), int(other.sum()), len(other))
    ends = without_spread(p, len(one), q, len(other))
    return Versus(q - p, *ends, p_value, "Fisher's exact test, of images that are not the same")


def welch(first: Sequence[Seen], second: Sequence[Seen], *, same: bool) -> Versus:
    by_image = [np.mean([one.right for one in seen], axis=0) for seen in (first, second)]
    difference = float(by_image[1].mean() - by_image[0].mean())
    looked = [by_image[1] - by_image[0]] if same else by_image
    samples = [*looked, *([one.right.mean() for one in seen] for seen in (first, second) if len(seen) > 1)]
    images = f"the same {counted(len(by_image[0]), 'image')}" if same else "images that are not the same"
    seeds = f"{len(first)} and {len(second)} seeds and " if len(first) + len(second) > 2 else ""
    if all(is_constant(values) for values in samples):
        return without_variance(by_image[0], by_image[1], f"{seeds}{images}", same=same)
    parts = [(standard_error(values) or 0.0, len(values) - 1) for values in samples]
    variance = sum(error**2 for error, _ in parts)
    freedom = variance**2 / sum(error**4 / df for error, df in parts if df)
    error = math.sqrt(variance)
    half = float(special.stdtrit(freedom, 0.975)) * error
    p = 2 * float(special.stdtr(freedom, -abs(difference) / error))
    return Versus(difference, difference - half, difference + half, p, f"t-test over {seeds}{images}")


def without_variance(first: np.ndarray, second: np.ndarray, what: str, *, same: bool) -> Versus:
    """Where nothing varies there is no t-test: its t is infinite and its p 0, however few the images are. The
    permutation test of the images takes its place, which is exact: that all of them differ the same way is one of 2**n
    signs, or of C(n + m, n) orders where they are not the same; p is twice that, for either way.

    first, second: shares by image.  what: was compared, in words.
    """
    n, m = len(first), len(second)
    p, q = float(first.mean()), float(second.mean())
    low, high = without_spread(p, n, q, m)
    test = f"permutation test over {what}, in which nothing varies"
    if abs(q - p) <= ROUNDING:
        return Versus(0.0, low, high, 1.0, test)
    chance = -n * math.log(2) if same else math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)
    return Versus(q - p, low, high, min(1.0, 2 * math.exp(chance)), test)


def against_best(best: Sequence[Seen], others: Sequence[Sequence[Seen]]) -> list[tuple[Versus, float]]:
    """Each of the others compared with the best, which is first, and its p-value by Holm's correction for them all."""
    found = [versus(best, other) for other in others]
    return list(zip(found, holm([one.p for one in found]), strict=True))
