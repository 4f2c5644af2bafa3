"""Wall-clock time of jobs on slots, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from robustq.jobs.submission.wall_time import wall_seconds


def jobs(*rows: tuple[str, str, tuple[str, ...]]) -> Any:
    return [SimpleNamespace(key=key, needs=needs, spec=SimpleNamespace(kind=kind)) for key, kind, needs in rows]


TWO_MODELS = jobs(
    ("a", "train", ()), ("a1", "eval", ("a",)), ("a2", "eval", ("a",)), ("aw", "worst", ("a1", "a2")),
    ("b", "train", ()), ("b1", "eval", ("b",)),
)  # fmt: skip
SECONDS = {"a": 10.0, "a1": 4.0, "a2": 6.0, "b": 30.0, "b1": 5.0}


@pytest.mark.parametrize(
    ("slots", "wall"),
    [
        (1, 55.0),  # one after the other
        (2, 35.0),  # a, a1 and a2 beside b, then b1
        (9, 35.0),  # no sooner than b and what needs it
    ],
)
def test_jobs_begin_when_a_slot_is_free_and_their_needs_are_done(slots: int, wall: float):
    assert wall_seconds(TWO_MODELS, SECONDS, slots) == wall


def test_what_is_done_takes_nothing_and_what_is_elsewhere_is_there():
    assert wall_seconds(TWO_MODELS, SECONDS | {"a": 0.0, "b": 0.0}, 2) == 4 + 5  # a1 and a2 at once, then b1
    assert wall_seconds(jobs(("a1", "eval", ("elsewhere",))), SECONDS, 1) == 4
    assert wall_seconds([], {}, 1) == 0
