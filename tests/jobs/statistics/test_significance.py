"""Statistics agree with SciPy and statsmodels, with closed forms, and with slow twins."""

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from robustlib.metrics import Z95
from robustq.jobs.statistics import significance

TABLES = [(0, 0, 50), (0, 1, 44), (12, 2, 50), (3, 9, 30), (40, 70, 1000), (200, 150, 10_000), (5, 0, 5), (0, 7, 7)]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_standard_error_and_t_interval_are_scipys(n):
    values = np.random.default_rng(n).random(n)
    assert significance.standard_error(values) == pytest.approx(stats.sem(values), rel=1e-12)
    wanted = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert significance.t_interval(values) == pytest.approx(wanted, rel=1e-12)
    wide = stats.t.interval(0.99, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert significance.t_interval(values, 0.99) == pytest.approx(wide, rel=1e-12)


def test_one_seed_tells_nothing_of_its_spread():
    assert significance.standard_error([0.5]) is None
    assert significance.t_interval([0.5]) is None


def pvalue(found: Any) -> float:
    return found.pvalue  # statsmodels gives a bunch, whose attributes no type knows


@pytest.mark.parametrize(("only_first", "only_second", "n"), TABLES)
def test_mcnemar_is_statsmodels(only_first, only_second, n):
    table = [[n - only_first - only_second, only_first], [only_second, 0]]
    assert significance.mcnemar_exact(only_first, only_second) == pytest.approx(
        pvalue(mcnemar(table, exact=True)), rel=1e-10
    )
    if only_first + only_second:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = pvalue(mcnemar(table, exact=False, correction=True))
        if only_first != only_second:  # statsmodels corrects beyond 0 where the two are equal
            assert significance.mcnemar_chi2(only_first, only_second) == pytest.approx(wanted, rel=1e-10)


def likeliest_share(only_first: int, only_second: int, n: int, delta: float) -> float:
    """The share of pairs that only the first got right, where the shares' difference is held: by search."""

    def unlikely(share: float) -> float:
        parts = (
            (only_first, share),
            (only_second, share + delta),
            (n - only_first - only_second, 1 - 2 * share - delta),
        )
        return -sum(count * np.log(max(p, 1e-300)) for count, p in parts if count)

    edges = (max(0.0, -delta), (1 - delta) / 2)
    return optimize.minimize_scalar(unlikely, bounds=edges, method="bounded", options={"xatol": 1e-13}).x


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(12, 2, 50), (3, 9, 30), (40, 70, 1000), (1, 1, 10)])
def test_the_score_interval_ends_where_the_score_test_refuses(only_first, only_second, n):
    for delta, wanted in zip(significance.score_interval(only_first, only_second, n), (Z95, -Z95), strict=True):
        share = likeliest_share(only_first, only_second, n, delta)
        variance = n * (2 * share + delta * (1 - delta))
        assert (only_second - only_first - n * delta) / np.sqrt(variance) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("n", [1, 50, 1000])
def test_the_score_interval_of_no_discordant_pair_has_a_closed_form(n):
    edge = Z95**2 / (n + Z95**2)
    assert significance.score_interval(0, 0, n) == pytest.approx((-edge, edge), rel=1e-9)


def test_the_score_interval_excludes_0_beyond_mcnemars_critical_value():
    for only_first in range(25):
        for only_second in range(25):
            low, high = significance.score_interval(only_first, only_second, 60)
            n = only_first + only_second
            beyond = n > 0 and (only_second - only_first) ** 2 / n > Z95**2
            assert (low > 0 or high < 0) == beyond, (only_first, only_second)
            assert low <= (only_second - only_first) / 60 <= high


def test_the_score_interval_covers_what_it_should():
    """Of made-up pairs with a known difference, about 95 % of the intervals hold it."""
    random, held, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        _, first, second = random.multinomial(200, [0.75, 0.15, 0.10])
        low, high = significance.score_interval(first, second, 200)
        held += low <= -0.05 <= high
    assert 0.92 < held / trials < 0.98


def test_paired_outcomes_of_fixed_models():
    first, second = np.array([1, 1, 1, 0, 0, 1.0]), np.array([1, 0, 0, 0, 1, 0.0])
    found = significance.paired(first, second)
    assert (found.n, found.only_first, found.only_second, found.difference) == (6, 3, 1, pytest.approx(-2 / 6))
    assert (found.low, found.high) == significance.score_interval(3, 1, 6)
    assert found.p_exact == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert found.p_chi2 is None and not found.beyond
    many = significance.paired(np.repeat(first, 50), np.repeat(second, 50))
    assert many.p_chi2 is not None and many.beyond


def test_paired_outcomes_of_randomised_models_get_students_interval():
    random = np.random.default_rng(1)
    first, second = random.random(80), random.random(80)
    found = significance.paired(first, second)
    wanted = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-10)


def test_outcomes_that_all_differ_alike_get_an_interval_that_is_no_point():
    """Student's is one there, which would leave out that there is no difference, of two images as of a thousand."""
    first = np.array([0.5, 0.25])
    found = significance.paired(first, first + 0.25)
    wanted = confint_proportions_2indep(2 * 0.625, 2, 2 * 0.375, 2, method="newcomb")
    assert (found.difference, found.low, found.high) == pytest.approx((0.25, *wanted)) and not found.beyond
    assert significance.paired(np.full(1000, 0.25), np.full(1000, 0.5)).beyond


def test_outcomes_of_other_examples_are_no_pair():
    with pytest.raises(ValueError, match="expected two outcomes of the same examples, got 2 and 3"):
        significance.paired(np.zeros(2), np.zeros(3))
