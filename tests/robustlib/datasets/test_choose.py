"""Places that stand for a whole split: evenly over it, and of each class its share."""

import numpy as np
import pytest

from robustlib.datasets.choose import is_lopsided, spread, spread_by_class


def test_places_are_even_and_rise():
    assert spread(9, 3).tolist() == [0, 3, 6] and spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 8).tolist() == [0, 1, 2] and spread(0, 8).tolist() == []


@pytest.mark.parametrize("order", ["by class", "in turn", "in none"])
def test_each_class_has_its_share_in_whatever_order_they_lie(order: str):
    """In turn as well: every tenth place of ten classes in turn is of one class."""
    y = {
        "by class": np.repeat(np.arange(10), 100),
        "in turn": np.arange(1000) % 10,
        "in none": np.random.default_rng(0).permutation(1000) % 10,
    }[order]
    for most in (10, 100, 250):
        places = spread_by_class(y, most)
        assert len(places) == most and (np.diff(places) > 0).all()
        assert np.bincount(y[places], minlength=10).tolist() == [most // 10] * 10
    assert spread_by_class(y, 5000).tolist() == list(range(1000)) and spread_by_class(y[:0], 5).tolist() == []


def test_a_class_is_taken_from_all_over_its_own():
    y = np.repeat([0, 1], [80, 20])
    assert spread_by_class(y, 10).tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]


@pytest.mark.parametrize(("classes", "each"), [(2, 5000), (10, 1000), (100, 500), (1000, 50)])
def test_data_by_class_are_told_from_shuffled_ones(classes: int, each: int):
    """Of many classes few images of each are among the first, and some have none: that is chance."""
    y = np.repeat(np.arange(classes), each)
    assert is_lopsided(y, 2000) and not is_lopsided(y, len(y))
    for seed in range(20):
        assert not is_lopsided(np.random.default_rng(seed).permutation(y), 2000)
    assert not is_lopsided(np.arange(len(y)) % classes, 2000)  # in turn
    half = np.concatenate([y[: len(y) // 2], np.random.default_rng(0).permutation(y[len(y) // 2 :])])
    assert is_lopsided(half, 2000)
