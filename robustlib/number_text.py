"""Numbers as text: beside what they count, and beside each other, such as a value and the limit that it failed."""

import math
from collections.abc import Callable, Sequence

EXACT = 17  # digits that tell any two floating-point numbers apart


def counted(n: int, one: str, many: str = "") -> str:
    """A number with what it counts: "1 job", "2 jobs". many: the plural where that is no s more, as with its verb."""
    return f"{n} {one}" if n == 1 else f"{n} {many or one + 's'}"


def in_seconds(seconds: float) -> str:
    """A time as it was set: "1 second", "0.5 seconds"."""
    return f"{seconds:g} second" if seconds == 1 else f"{seconds:g} seconds"


def distinct(values: Sequence[float], digits: int = 3) -> list[str]:
    """The numbers with as few digits as tell those apart that differ, and at least so many: "0.5004", "0.5"."""
    return enough(values, short, digits)


def fractions(values: Sequence[float], decimals: int = 3) -> list[str]:
    """The same with so many decimals, such as accuracies have: "0.500", "0.750"."""
    return enough(values, lambda value, count: f"{value:.{count}f}", decimals)


def percents(values: Sequence[float], decimals: int = 1) -> list[str]:
    """Fractions in percent, without the sign, as `fractions` are."""
    return fractions([100 * value for value in values], decimals)


def beyond(value: float, limit: float, digits: int = 3) -> str:
    """A value that is above its limit, which never look alike: "0.5004 > 0.5"."""
    return " > ".join(distinct((value, limit), digits))


def exact(value: float) -> str:
    """The number with as few digits as give it back: one that is rounded would promise more, or less."""
    return next(text for digits in range(1, EXACT + 1) if float(text := short(value, digits)) == value)


def enough(values: Sequence[float], write: Callable[[float, int], str], least: int) -> list[str]:
    """The values as written with the fewest digits that tell apart what differs."""
    found, digits = [write(value, least) for value in values], least
    while len(set(found)) < len(set(values)) and digits < EXACT:
        digits += 1
        found = [write(value, digits) for value in values]
    return found


def short(value: float, digits: int) -> str:
    """A number to so many digits, a whole one with all of its own."""
    whole = math.isfinite(value) and value == round(value) and abs(value) < 1e15
    return str(round(value)) if whole else f"{value:.{digits}g}"
