"""Last lines of what a process printed, short enough to be told."""

import re

RAYS_OWN = re.compile(
    r":(job_id|task_name|actor_name):|\*\*\* |PC: @|\s+@ +0x|\[\d{4}-\d\d-\d\d [^]]*\]|Extension modules: "
)
MOST = 300  # characters of a line that are shown


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not RAYS_OWN.match(line)]
    return lines[-1] if lines else ""


def shorten(line: str) -> str:
    return line if len(line) <= MOST else f"{line[:MOST]}..."
