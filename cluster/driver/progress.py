"""Live progress: one line that is rewritten on a terminal, a line now and then elsewhere, in words or as JSON. Always
to stderr.
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from robustq.jobs.queue.time_left import Costs
from robustq.jobs.text.durations import duration as duration
from robustq.jobs.text.notes import note, wanted

LOG_SECONDS = 10.0  # between lines where there is no terminal


@dataclass
class Progress:
    """Shows how far the queue is, how fast it goes and what is left. as_json: for programs, terminal or not."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    started_at: float = field(default_factory=time.monotonic)
    before: int | None = None  # jobs done at the start
    shown_at: float = -LOG_SECONDS
    as_json: bool = False

    @property
    def rewrites(self) -> bool:
        return self.out.isatty() and not self.as_json

    def __call__(self, counts: dict[str, int], costs: Costs) -> None:
        """Show the jobs by state and the time left, called as often as one likes."""
        now = time.monotonic()
        if self.before is None:
            self.before = counts["done"]
        if not wanted() or now - self.shown_at < (0.2 if self.rewrites else LOG_SECONDS):
            return
        self.shown_at = now
        state = self.state(counts, costs, now)
        with suppress(OSError):  # of a pipe or disk that takes no more: jobs go on all the same
            if self.rewrites:
                self.out.write("\r\x1b[K" + self.line(state))
            else:
                self.out.write((json.dumps(state) if self.as_json else self.line(state)) + "\n")
            self.out.flush()

    def tell(self, text: str) -> None:
        """A line that stays."""
        self.close()
        note(text)

    def close(self) -> None:
        """Leave the line."""
        if self.rewrites and self.before is not None:
            self.out.write("\r\x1b[K")

    def state(self, counts: dict[str, int], costs: Costs, now: float) -> dict[str, float | int | None]:
        """Jobs by state, jobs a minute since the start, seconds left: None while nothing like what waits has run.

        The total has no jobs that are cancelled, as by a budget: they are not to be done.
        """
        seconds = now - self.started_at
        rate = (counts["done"] - (self.before or 0)) / seconds if seconds > 0 else 0.0
        return {
            "done": counts["done"],
            "total": sum(counts.values()) - counts["cancelled"],
            "running": counts["running"],
            "failed": counts["failed"],
            "jobs_per_minute": round(60 * rate, 1),
            "elapsed_seconds": round(seconds, 1),
            "left_seconds": None if costs.seconds is None else round(costs.seconds, 1),
        }

    def line(self, state: dict[str, float | int | None]) -> str:
        left = "" if state["left_seconds"] is None else f", about {duration(state['left_seconds'])} left"
        failed = f", {state['failed']} failed" if state["failed"] else ""
        return (
            f"{state['done']}/{state['total']} jobs, {state['running']} running{failed}, "
            f"{state['jobs_per_minute']}/min, {duration(state['elapsed_seconds'] or 0)}{left}"
        )
