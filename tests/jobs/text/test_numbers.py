"""Numbers as people read them."""

import math

import pytest

from robustq.jobs.text.numbers import eps_text

ODD = [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")]  # as a card from elsewhere may say


@pytest.mark.parametrize(
    ("eps", "text"), [(None, ""), (0.1, "0.1"), (8 / 255, "8/255"), (1.0, "1"), (0.123456, "0.123456"), *ODD]
)
def test_every_radius_has_a_text(eps: float | None, text: str):
    assert eps_text(eps) == text
