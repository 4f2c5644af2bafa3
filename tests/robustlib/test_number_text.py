"""Numbers beside each other differ as text where they differ, and have no more digits than that needs."""

import math

import pytest

from robustlib.arguments import Range, check_width
from robustlib.number_text import beyond, counted, distinct, fractions, in_seconds, percents


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ((0.9, 0.25), 3, ["0.9", "0.25"]),
        ((0.5004, 0.5), 3, ["0.5004", "0.5"]),
        ((0.50000001, 0.5), 3, ["0.50000001", "0.5"]),
        ((math.nextafter(0.1, 1), 0.1), 3, ["0.10000000000000002", "0.10000000000000001"]),
        ((3, 0), 3, ["3", "0"]),
        ((8.0000019, 8), 3, ["8.000002", "8"]),
        ((0.5, 0.5), 3, ["0.5", "0.5"]),
        ((math.inf, 1.0), 3, ["inf", "1"]),
        ((1.0, 1.0001, 2.0), 4, ["1", "1.0001", "2"]),
    ],
)
def test_as_many_digits_as_tell_them_apart(values, digits, expected):
    assert distinct(values, digits) == expected


def test_accuracies_keep_their_decimals_unless_they_look_alike():
    assert fractions((0.5, 0.75)) == ["0.500", "0.750"]
    assert fractions((0.5, 0.50004)) == ["0.50000", "0.50004"]
    assert percents((0.5, 0.5004)) == ["50.00", "50.04"] and percents((0.5, 0.5)) == ["50.0", "50.0"]
    assert beyond(0.2500001, 0.25) == "0.2500001 > 0.25"


def test_a_radius_just_beyond_the_images_is_not_called_1():
    with pytest.raises(ValueError, match=r"expected eps in \[0, 1\] .*, got 1\.0000001"):
        check_width("pgd", "eps", "Linf", 1.0000001)


def test_what_is_counted_is_one_or_several():
    assert [counted(n, "job") for n in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
    assert [counted(n, "pass of it is", "passes of it are") for n in (1, 10)] == [
        "1 pass of it is",
        "10 passes of it are",
    ]


def test_a_time_is_one_second_or_several():
    assert [in_seconds(value) for value in (1, 1.0, 0.5, 60)] == ["1 second", "1 second", "0.5 seconds", "60 seconds"]


def test_a_range_of_large_numbers_has_no_powers_of_ten():
    assert Range(least=1, most=1_000_000).words == "from 1 to 1000000"
    assert Range(above=0, below=1).words == "between 0 and 1" and Range(least=0.25).words == "of at least 0.25"
