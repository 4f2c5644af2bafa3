"""Comparisons of models agree with SciPy, statsmodels and a t-test by hand."""

from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from robustlib.metrics import Z95, median_interval, wilson
from robustq.jobs.statistics.model_pairs import Seen, against_best, versus
from robustq.jobs.statistics.significance import fisher_exact, holm, seeds_and_images, standard_deviation


def made(seed: int, n: int = 60, share: float = 0.7, *, first: int = 0) -> Seen:
    random = np.random.default_rng(seed)
    return Seen(np.arange(first, first + n), np.arange(n) % 10, random.random(n) < share)


def test_the_same_images_are_compared_by_mcnemars_exact_test():
    one, other = made(0), made(1, share=0.5)
    found = versus([one], [other])
    b, c = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
    wanted: Any = mcnemar([[0, b], [c, 0]], exact=True)
    assert (found.only_first, found.only_second, found.p) == (b, c, pytest.approx(wanted.pvalue))
    assert found.difference == pytest.approx(other.right.mean() - one.right.mean())
    assert found.test == "McNemar's exact test on the same 60 images"


def test_one_image_is_no_plural():
    one = Seen(np.zeros(1, int), np.zeros(1, int), np.ones(1))
    assert versus([one], [one]).test == "McNemar's exact test on the same 1 image"
    assert versus([one] * 2, [one] * 2).test.startswith("permutation test over 2 and 2 seeds and the same 1 image, ")


def test_other_images_are_compared_by_fishers_exact_test():
    one, other = made(0, 50), made(1, 40, 0.4, first=50)
    found = versus([one], [other])
    right = [(int(x.right.sum()), len(x.right)) for x in (one, other)]
    (a, n), (b, m) = right
    assert found.p == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]])[1])
    assert found.only_first is None and found.test == "Fisher's exact test, of images that are not the same"
    low, high = confint_proportions_2indep(b, m, a, n, method="newcomb")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    for a, n, b, m in ((0, 5, 5, 5), (0, 7, 0, 9), (50, 100, 60, 90), (999, 1000, 950, 1000)):
        wanted = stats.fisher_exact([[a, n - a], [b, m - b]])[1]
        assert fisher_exact(a, n, b, m) == pytest.approx(wanted, rel=1e-7)


def test_images_with_other_labels_are_not_the_same():
    one = made(0)
    other = Seen(one.index, one.label + 1, one.right)
    assert versus([one], [other]).test.startswith("Fisher")
    assert versus([one], [Seen.counted(0.5, 60)]).test.startswith("Fisher")


def test_over_seeds_the_chances_of_seeds_and_of_images_add():
    first, second = [made(s) for s in (0, 1, 2)], [made(s, share=0.55) for s in (3, 4)]
    found = versus(first, second)
    means = [np.mean([one.right for one in seen], 0) for seen in (first, second)]
    accuracies = [[one.right.mean() for one in seen] for seen in (first, second)]
    parts = [
        (np.var(means[1] - means[0], ddof=1) / 60, 59),
        (np.var(accuracies[0], ddof=1) / 3, 2),
        (np.var(accuracies[1], ddof=1) / 2, 1),
    ]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    t = (np.mean(accuracies[1]) - np.mean(accuracies[0])) / np.sqrt(variance)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.test == "t-test over 3 and 2 seeds and the same 60 images"
    # With more chances to err it is less sure than either alone.
    alone = stats.ttest_rel(means[1], means[0]).pvalue
    assert found.p > alone


def test_models_that_did_the_same_are_not_told_apart():
    seeds = [made(0), made(1)]
    assert versus(seeds, seeds).p == 1.0
    equal = [made(0), made(0)]
    assert (versus(equal, equal).p, versus(equal, equal).difference) == (1.0, 0.0)


def even(share: float, n: int, *, first: int = 0) -> Seen:
    """A randomised model that does on every image what it does on the others."""
    return Seen(np.arange(first, first + n), np.arange(n) % 10, np.full(n, share))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_where_nothing_varies_the_same_images_are_permuted(n: int):
    """SciPy's t-test has a p of 0 there, whether of three images or of a thousand; its permutation test has not."""
    one, other = even(0.25, n), even(0.75, n)
    found = versus([one], [other])
    wanted = stats.permutation_test(
        (one.right, other.right), lambda x, y: np.mean(y) - np.mean(x), permutation_type="samples", vectorized=False
    )
    assert found.p == pytest.approx(wanted.pvalue) == 2 / 2**n
    assert found.difference == pytest.approx(0.5) and found.low < 0.5 < found.high <= 1
    low, high = confint_proportions_2indep(0.75 * n, n, 0.25 * n, n, method="newcomb")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    same = f"the same {n} images"
    assert found.test == f"permutation test over {same}, in which nothing varies"
    assert versus([even(0.25, 1)], [even(0.75, 1)]).p == 1.0
    seeds = versus([one, one], [other, other])
    assert seeds.p == found.p and seeds.test.startswith(f"permutation test over 2 and 2 seeds and {same}")


def test_where_nothing_varies_other_images_are_permuted_too():
    one, other = even(0.5, 3), even(1.0, 4, first=3)
    found = versus([one], [other])
    wanted = stats.permutation_test((one.right, other.right), lambda x, y: np.mean(y) - np.mean(x), vectorized=False)
    assert found.p == pytest.approx(wanted.pvalue) == pytest.approx(2 / 35)
    assert found.test == "permutation test over images that are not the same, in which nothing varies"
    assert versus([even(0.5, 900)], [even(0.6, 900, first=900)]).p < 1e-300


def test_what_differs_by_rounding_alone_is_told_apart_by_no_test():
    """Means of the same shares in another order, and shares of which all differ by the same but for the last bit."""
    third = np.full(5, 1 / 3)
    jitter = third + 0.1 + np.array([0, 1, -1, 0, 1]) * 1e-16
    one, other = (Seen(np.arange(5), np.arange(5), right) for right in (third, jitter))
    found = versus([one], [other])
    assert found.p == pytest.approx(2 / 32) and found.low < 0.1 < found.high
    equal = versus([one], [Seen(one.index, one.label, third + 5e-17)])
    assert (equal.p, equal.difference) == (1.0, 0.0) and equal.test == found.test
    assert equal.low < 0 < equal.high


@pytest.mark.slow
def test_p_values_of_many_are_corrected_as_statsmodels_does():
    values = np.random.default_rng(3).random(9) * 0.1
    assert holm(values.tolist()) == pytest.approx(multipletests(values, method="holm")[1])
    assert holm([]) == [] and holm([0.7]) == [0.7]
    best, others = [made(0, share=0.9)], [[made(s, share=0.5 + s / 20)] for s in range(1, 7)]
    found = against_best(best, others)
    own = [one.p for one, _ in found]
    assert own == [versus(best, other).p for other in others]
    assert [p for _, p in found] == pytest.approx(multipletests(own, method="holm")[1])


def test_an_interval_for_seeds_and_images_is_wider_than_either():
    accuracies = [0.5, 0.56, 0.6]
    low, high = seeds_and_images(accuracies, 200)
    centre = float(np.mean(accuracies))
    student = stats.t.ppf(0.975, 2) * np.std(accuracies, ddof=1) / np.sqrt(3)
    ends = wilson(centre * 200, 200)
    assert (low, high) == pytest.approx(
        (centre - np.hypot(centre - ends[0], student), centre + np.hypot(ends[1] - centre, student))
    )
    assert low < min(ends[0], centre - student) and high > max(ends[1], centre + student)
    assert seeds_and_images([0.3], 100) == pytest.approx(wilson(30, 100))
    assert seeds_and_images([1.0, 1.0], 50) == pytest.approx(wilson(50, 50))  # no spread, but few images
    assert standard_deviation([0.5]) is None
    assert standard_deviation(accuracies) == pytest.approx(np.std(accuracies, ddof=1)) and Z95 > 1.9


@pytest.mark.parametrize("n", [1, 5, 6, 7, 20, 100, 2001])
def test_the_interval_of_a_median_is_scipys(n):
    values = np.random.default_rng(n).exponential(size=n)
    wanted = stats.quantile_test(values, q=np.median(values), p=0.5).confidence_interval(0.95)
    found = median_interval(values)
    if n < 6:
        assert found is None
        assert not np.isfinite([wanted.low, wanted.high]).all()
    else:
        assert found is not None and found == pytest.approx((wanted.low, wanted.high))
        ordered = np.sort(values)
        rank = int(np.searchsorted(ordered, found[0])) + 1
        assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025 < stats.binom.cdf(rank, n, 0.5)
