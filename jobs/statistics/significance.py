"""Statistics of differences: intervals over seeds, and tests of two outcomes on the same examples.

Formulas over scipy.special rather than scipy.stats, which takes a second to load; tests compare with both it and
statsmodels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from robustlib.metrics import Z95, wilson

ROUNDING = 1e-12  # of means of shares
MANY_DISCORDANT = 25  # pairs from which on the chi-square approximation of McNemar's test is usual


@dataclass(frozen=True)
class Paired:
    """Two outcomes on the same examples.

    difference: mean of second minus first, low and high the ends of its 95 % interval.  only_first, only_second:
    examples that one got right and the other did not.  p_exact, p_chi2: McNemar's test; p_chi2, with continuity
    correction, is None for fewer than MANY_DISCORDANT such examples.
    """

    n: int
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_exact: float
    p_chi2: float | None

    @property
    def beyond(self) -> bool:
        """Whether the interval leaves out that there is no difference."""
        return self.low > 0 or self.high < 0


def standard_deviation(values: Sequence[float] | np.ndarray) -> float | None:
    """The sample's standard deviation, as papers give it beside a mean over seeds; None for fewer than two values."""
    given = np.asarray(values, np.float64)
    return float(given.std(ddof=1)) if len(given) > 1 else None


def standard_error(values: Sequence[float] | np.ndarray) -> float | None:
    """Standard error of the mean, from the sample's own spread; None for fewer than two values."""
    given = np.asarray(values, np.float64)
    return float(given.std(ddof=1) / math.sqrt(len(given))) if len(given) > 1 else None


def is_constant(values: Sequence[float] | np.ndarray) -> bool:
    """Whether nothing varies but for rounding: of such a sample a t-test says anything, as SciPy warns."""
    given = np.asarray(values, np.float64)
    return float(np.ptp(given)) <= ROUNDING


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean (Student 1908); None for fewer than two values."""
    error = standard_error(values)
    if error is None:
        return None
    centre = float(np.mean(np.asarray(values, np.float64)))
    half = float(special.stdtrit(len(values) - 1, 0.5 + confidence / 2)) * error
    return centre - half, centre + half


def seeds_and_images(values: Sequence[float], n: int) -> tuple[float, float]:
    """A 95 % interval of a mean accuracy over seeds, each on the same n images: for both sources of chance.

    Student's interval over the seeds and Wilson's of n images, put together by the recovery of variances (Zou and
    Donner 2008, doi:10.1002/sim.3095): distances from the mean to an end add as squares. Of one seed Wilson's alone.
    """
    centre = float(np.mean(values))
    ends, spread = wilson(centre * n, n), t_interval(values)
    half = 0.0 if spread is None else (spread[1] - spread[0]) / 2
    return (
        max(centre - math.hypot(centre - ends[0], half), 0.0),
        min(centre + math.hypot(ends[1] - centre, half), 1.0),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several comparisons by Holm's step-down correction (Holm 1979), in their order."""
    m, largest, found = len(values), 0.0, [0.0] * len(values)
    for rank, place in enumerate(sorted(range(m), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (m - rank) * values[place]))
        found[place] = largest
    return found


def fisher_exact(right: int, n: int, other_right: int, other_n: int) -> float:
    """Two-sided p-value of Fisher's exact test of two proportions (Fisher 1935): tables no likelier than this one."""
    total, drawn = n + other_n, right + other_right
    k = np.arange(max(0, drawn - other_n), min(n, drawn) + 1)

    def ways(whole: int, part: np.ndarray | int) -> np.ndarray:
        return (
            special.gammaln(whole + 1)
            - special.gammaln(np.add(part, 1))
            - special.gammaln(np.subtract(whole + 1, part))
        )

    chance = np.exp(ways(n, k) + ways(other_n, drawn - k) - ways(total, drawn))
    own = chance[right - k[0]]
    return min(1.0, float(chance[chance <= own * (1 + 1e-7)].sum()))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947): a fair coin's on the discordant pairs."""
    n = only_first + only_second
    return min(1.0, 2 * float(special.bdtr(min(only_first, only_second), n, 0.5))) if n else 1.0


def mcnemar_chi2(only_first: int, only_second: int) -> float:
    """p-value of McNemar's chi-square with Edwards' continuity correction (Edwards 1948); for many discordant pairs."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    return float(special.chdtrc(1, max(abs(only_first - only_second) - 1, 0) ** 2 / n))


def score_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Tango's 95 % score interval of a difference of paired proportions, second minus first (Tango 1998,
    doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B).

    Those differences that the score test does not refuse; it leaves out 0 exactly where McNemar's chi-square without
    correction is beyond its 95 % point. Not empty even without discordant pairs, where Wald's interval is.
    """
    difference = (only_second - only_first) / n

    def score(delta: float) -> float:
        """Differences left of the observed one have positive scores, those right of it negative ones."""
        b = -only_first - only_second + (2 * n - only_second + only_first) * delta
        c = -only_first * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # of pairs that only the first got right
        variance = n * (2 * share + delta * (1 - delta))
        gap = only_second - only_first - n * delta
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    return bisect(lambda d: score(d) > Z95, -1.0, difference), bisect(lambda d: score(d) >= -Z95, difference, 1.0)


def without_spread(first: float, n: int, second: float, m: int) -> tuple[float, float]:
    """A 95 % interval of a difference of means within [0, 1], second minus first, that needs no variance.

    Newcombe's of Wilson's (Newcombe 1998, method 10): no variable within [0, 1] of this mean varies more than one that
    is 0 or 1. For samples in which nothing varies, of which Student's interval is a point, however small they are.
    """
    (low, high), (lower, higher) = wilson(first * n, n), wilson(second * m, m)
    difference = second - first
    down, up = math.hypot(second - lower, high - first), math.hypot(higher - second, first - low)
    return max(difference - down, -1.0), min(difference + up, 1.0)


def bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where something that holds at and above `low` ceases to, to the last bits; `low` where it never holds."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare two outcomes of the same examples, in the same order.

    first, second: shares of draws that classify each example correctly, shape (N,); 0 and 1 for fixed models, whose
    difference gets Tango's interval. Any other gets Student's, or that of `without_spread` where all images differ
    alike, and counts as right in McNemar's test from one half on.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected two outcomes of the same examples, got {len(first)} and {len(second)}")
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    right, also = first >= 0.5, second >= 0.5
    only_first, only_second = int((right & ~also).sum()), int((also & ~right).sum())
    difference, n = float((second - first).mean()), len(first)
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        low, high = score_interval(only_first, only_second, n)
    elif n > 1 and is_constant(second - first):
        low, high = without_spread(float(first.mean()), n, float(second.mean()), n)
    else:
        low, high = t_interval(second - first) or (-1.0, 1.0)
    many = only_first + only_second >= MANY_DISCORDANT
    return Paired(
        n, difference, low, high, only_first, only_second, mcnemar_exact(only_first, only_second),
        mcnemar_chi2(only_first, only_second) if many else None,
    )  # fmt: skip
