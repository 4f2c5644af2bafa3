"""Live progress: one line that is rewritten on a terminal, a line now and then elsewhere, in words or as JSON. Always
to stderr.
"""

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from robustq.jobs.text.notes import note, wanted

LOG_SECONDS = 10.0  # between lines where there is no terminal


@dataclass
class Progress:
    """Shows how far the queue is, how fast it goes and what is left. as_json: for programs, terminal or not."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    started_at: float = field(default_factory=time.monotonic)
    before: tuple[int, float] | None = None  # jobs done, and cost of what was done, at the start
    shown_at: float = -LOG_SECONDS
    as_json: bool = False

    @property
    def rewrites(self) -> bool:
        return self.out.isatty() and not self.as_json

    def __call__(self, counts: dict[str, int], costs: tuple[float, float]) -> None:
        """Show the jobs by state, called as often as one likes. costs: estimated, of what is done and what is left."""
        now = time.monotonic()
        if self.before is None:
            self.before = counts["done"], costs[0]
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

    def state(self, counts: dict[str, int], costs: tuple[float, float], now: float) -> dict[str, float | int | None]:
        """Jobs by state, jobs a minute since the start, seconds left at the rate at which estimated work gets done."""
        seconds = now - self.started_at
        done_before, cost_before = self.before or (0, 0.0)
        rate = (counts["done"] - done_before) / seconds if seconds > 0 else 0.0
        worked, left = costs[0] - cost_before, costs[1]
        return {
            "done": counts["done"],
            "total": sum(counts.values()),
            "running": counts["running"],
            "failed": counts["failed"],
            "jobs_per_minute": round(60 * rate, 1),
            "elapsed_seconds": round(seconds, 1),
            "left_seconds": round(left * seconds / worked, 1) if worked > 0 else None,
        }

    def line(self, state: dict[str, float | int | None]) -> str:
        left = "" if state["left_seconds"] is None else f", about {duration(state['left_seconds'])} left"
        failed = f", {state['failed']} failed" if state["failed"] else ""
        return (
            f"{state['done']}/{state['total']} jobs, {state['running']} running{failed}, "
            f"{state['jobs_per_minute']}/min, {duration(state['elapsed_seconds'] or 0)}{left}"
        )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
