"""Numbers as people write them: in a study, in an option, as a fraction; a boolean is none. Free of pydantic."""

import math
import re
from typing import Any

FRACTION = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*/\s*(\d+\.?\d*|\.\d+)\s*")
EXACT = 2**53  # up to which a float is sure to be the whole number that was written
MOST = 2**31  # below which a store holds whole numbers


class NotNumber(ValueError):
    """Something that is not the number that was expected."""

    def __init__(self, expected: str, value: Any):
        self.expected = expected
        self.value = value
        super().__init__(self.words())

    def words(self, written: str | None = None) -> str:
        """What was expected and what came. written: as it stands in the file, where that is known."""
        value = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        came = f"{written} ({value})" if written is not None and written.lower() != value else value
        return f"expected {self.expected}, got {came}"


def number(value: Any) -> Any:
    """ "8/255" as a number; anything else as it is."""
    if isinstance(value, str) and (match := FRACTION.fullmatch(value)) and float(match[2]) != 0:
        return float(match[1]) / float(match[2])
    return value


def read_number(text: str) -> float | None:
    """The number that a text is, such as 8/255, 0.03 or inf; None where it is none."""
    try:
        return float(number(text))
    except ValueError:
        return None


def radius(value: Any) -> float:
    """A radius from a study or an option, such as 8/255. Raises NotNumber; what it may be, the kernels' table says."""
    if isinstance(value, bool):
        raise NotNumber("a number", value)
    found = read_number(value) if isinstance(value, str) else value
    if not isinstance(found, int | float):
        raise NotNumber("a number such as 8/255", repr(value) if isinstance(value, str) else value)
    try:
        return float(found)
    except OverflowError:
        return math.inf


def real(value: Any) -> Any:
    """A number from a study. Raises NotNumber for a boolean and for what is not finite."""
    if isinstance(value, bool):
        raise NotNumber("a number", value)
    if isinstance(value, float) and not math.isfinite(value):
        raise NotNumber("a finite number", value)
    return number(value)


def whole(value: Any) -> Any:
    """A whole number from a study, also as 1e1 or 10.0. Raises NotNumber for a boolean, and for what is not whole."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise NotNumber("a whole number", value)
    if isinstance(value, float) and abs(value) > EXACT:
        raise NotNumber(f"a whole number below {MOST}", value)
    return int(value) if isinstance(value, float) else value


def written_whole(text: str) -> int | None:
    """The whole number that an option's text is, such as 10 or 1e1; None where it is none."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
        return whole(value) if math.isfinite(value) else None
    except ValueError:
        return None


def fitting(owner: str, name: str, kind: Any, kinds: tuple[Any, ...], value: Any) -> Any:
    """A value for a parameter: where whole numbers are meant, 1e1 and 10.0 are 10.

    kind: its annotation, which is a union of kinds. Raises ValueError for a boolean where a number is meant, and the
    other way round, and for a whole number that no computation ends with.
    """
    begin = f"{owner}: " if owner else ""
    if bool in kinds and not isinstance(value, bool):
        raise ValueError(f"{begin}expected {name} to be true or false, got {value!r}")
    if bool in kinds or not {int, float} & set(kinds):
        return value
    if isinstance(value, bool):
        read = "yes, on and true" if value else "no, off and false"
        named = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{begin}expected {name} of type {named}, got {value} (as {read} are read)")
    fits = isinstance(value, float) and float not in kinds and value.is_integer() and abs(value) <= EXACT
    found = int(value) if fits else value
    if isinstance(found, int) and float not in kinds and abs(found) >= MOST:
        raise ValueError(f"{begin}expected {name} below {MOST}, got {found}")
    return found
