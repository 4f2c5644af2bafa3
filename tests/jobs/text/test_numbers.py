"""Numbers as people read them."""

import math

import pytest

from robustq.jobs.text.numbers import eps_text, times_text

ODD = [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")]  # as a card from elsewhere may say


@pytest.mark.parametrize(
    ("eps", "text"), [(None, ""), (0.1, "0.1"), (8 / 255, "8/255"), (1.0, "1"), (0.123456, "0.123456"), *ODD]
)
def test_every_radius_has_a_text(eps: float | None, text: str):
    assert eps_text(eps) == text


@pytest.mark.parametrize(
    ("factor", "text"), [(1.0, "1 time"), (1.0004, "1 time"), (2.5, "2.5 times"), (4e4, "40 000 times")]
)
def test_one_time_is_no_plural(factor: float, text: str):
    assert times_text(factor) == text
