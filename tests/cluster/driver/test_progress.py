"""Progress: JSON lines where nobody looks at a terminal, one line with rate and time left where somebody does."""

import io
import json
import logging

import pytest

from robustq.cluster.driver import progress
from robustq.cluster.driver.progress import Progress, duration
from robustq.jobs.queue.time_left import Costs

COUNTS = dict.fromkeys(("blocked", "queued", "leased", "running", "done", "failed", "cancelled"), 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is told otherwise."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_rate_and_time_left_count_from_this_start(clock):
    out = io.StringIO()
    show = Progress(out=out, started_at=100.0, as_json=True)
    show(COUNTS | {"done": 50, "queued": 50}, Costs(1000.0, 400.0))  # 50 were done before
    clock[0] = 160.0
    show(COUNTS | {"done": 60, "queued": 38, "running": 2}, Costs(1100.0, 300.0, 180.04))
    first, last = (json.loads(line) for line in out.getvalue().splitlines())
    assert first["left_seconds"] is None
    assert (last["done"], last["total"], last["running"]) == (60, 100, 2)
    assert (last["jobs_per_minute"], last["elapsed_seconds"], last["left_seconds"]) == (10.0, 60.0, 180.0)


def test_what_a_budget_left_out_is_not_to_be_done(clock):
    out = io.StringIO()
    show = Progress(out=out, started_at=100.0)
    show(COUNTS | {"done": 2, "running": 1, "cancelled": 7}, Costs(2.0, 1.0))
    assert out.getvalue() == "2/3 jobs, 1 running, 0.0/min, 0 s\n"


def test_lines_are_few_where_there_is_no_terminal(clock):
    out = io.StringIO()
    show = Progress(out=out, started_at=100.0)
    for tenth in range(250):
        clock[0] = 100 + tenth / 10
        show(COUNTS | {"queued": 1}, Costs(0.0, 1.0))
    assert len(out.getvalue().splitlines()) == 3


def test_a_terminal_shows_one_line(clock):
    out = Terminal()
    show = Progress(out=out, started_at=100.0)
    show(COUNTS | {"queued": 3}, Costs(0.0, 9.0))
    clock[0] = 130.0
    show(COUNTS | {"done": 1, "running": 1, "queued": 1, "failed": 1}, Costs(3.0, 6.0, 60.0))
    shown = out.getvalue().split("\r\x1b[K")[-1]
    assert shown == "1/4 jobs, 1 running, 1 failed, 2.0/min, 30 s, about 1 min 00 s left"
    show.close()
    assert out.getvalue().endswith("\r\x1b[K")
    assert "\n" not in out.getvalue()


def test_a_log_file_has_lines_in_words_without_powers_of_ten(clock):
    out = io.StringIO()
    show = Progress(out=out, started_at=100.0)
    show(COUNTS | {"done": 1, "queued": 99_999}, Costs(0.0, 400.0))
    clock[0] = 12_770.0
    show(COUNTS | {"done": 12_345, "queued": 87_655}, Costs(100.0, 300.0, 38_010.0))
    assert out.getvalue().splitlines() == [
        "1/100000 jobs, 0 running, 0.0/min, 0 s",
        "12345/100000 jobs, 0 running, 58.5/min, 3 h 31 min, about 10 h 33 min left",
    ]


def test_a_terminal_has_json_too_where_that_is_asked_for(clock):
    out = Terminal()
    show = Progress(out=out, started_at=100.0, as_json=True)
    show(COUNTS | {"queued": 3}, Costs(0.0, 9.0))
    show.close()
    assert json.loads(out.getvalue()) == {
        "done": 0, "total": 3, "running": 0, "failed": 0, "jobs_per_minute": 0.0, "elapsed_seconds": 0.0,
        "left_seconds": None,
    }  # fmt: skip


def test_nothing_is_shown_where_only_errors_are_wanted(clock, caplog):
    out = io.StringIO()
    with caplog.at_level(logging.ERROR, logger="robustq"):
        show = Progress(out=out, started_at=100.0)
        show(COUNTS | {"queued": 3}, Costs(0.0, 9.0))
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (5000, "1 h 23 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
