"""Lengths of time as people say them, and as they type them."""

import re

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
PART = re.compile(r"(\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})\s?(min|[smhd])")
MOST_SECONDS = 1e9  # thirty years


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def read_duration(text: str) -> float:
    """Seconds of a length of time as people type it: 2h, 90m, 3600s, 1.5h, 1h30m. Raises ValueError."""
    parts = PART.findall(text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text.replace(" ", ""):
        raise ValueError(f"expected a length of time such as 2h, 90m or 3600s, got {text!r}")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"expected a length of time above 0 and up to {MOST_SECONDS:g} s, got {text!r}")
    return seconds
