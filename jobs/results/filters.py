"""Filters on results: conditions on the columns of v_results, as SQL, so that a large store is not read whole."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from robustlib.names import did_you_mean
from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.errors import SpecError
from robustq.jobs.results.columns import RESULT_COLUMNS, WHY
from robustq.jobs.text.number_parsing import read_number
from robustq.jobs.text.tables import TIME_COLUMNS

TEXT_COLUMNS = frozenset(
    {"sweep", "model", "arch", "defence", "dataset", "attack", "norm", "recipe", "device", "key", "verdict", WHY}
)
JSON_COLUMNS = frozenset({"versions"})
WHOLE_COLUMNS = frozenset({"seed", "n", "job_id", "queries", "queries_most", "kept"})

NULL = "null"
RELATIVE_TOLERANCE = 1e-6  # relative, of fractions: as people type them, 0.0313725 for 8/255
CONDITION = re.compile(r"\s*([a-z_]+(?:\.\w+)?)\s*(!=|<=|>=|=|<|>)(.*)", re.S)


@dataclass(frozen=True)
class Condition:
    """column, or versions.NAME for an entry of it; operator one of = != < <= > >=; value as typed."""

    column: str
    operator: str
    value: str


@dataclass(frozen=True)
class Filters:
    """Rows of the latest sweep of this name (or of every name that fits, or of the sweep of this number), for which all
    groups of conditions hold; a group holds where one of its conditions does.
    """

    sweep: str | int | None = None
    groups: tuple[tuple[Condition, ...], ...] = ()

    def narrowed(self, more: "Filters") -> "Filters":
        """These filters with the conditions of others."""
        return replace(self, groups=(*self.groups, *more.groups))


def make_filters(
    sweep: str | None, named: Mapping[str, Any], where: Iterable[str] = (), known: Sequence[str] = RESULT_COLUMNS
) -> Filters:
    """Filters as options say them. named: by column one value or several, of which one must fit; None for any.

    where: conditions such as "robust_accuracy<0.5".  known: columns that there are.
    Raises SpecError for what is no column or no condition.
    """
    groups = [tuple(Condition(column, "=", str(v)) for v in several(value)) for column, value in named.items()]
    groups += [(parse_condition(text),) for text in ([where] if isinstance(where, str) else where)]
    found = tuple(group for group in groups if group)
    for condition in [condition for group in found for condition in group]:
        check_condition(condition, known)
    return Filters(sweep, found)


def several(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return [value] if isinstance(value, str | int | float) else list(value)


def parse_condition(text: str) -> Condition:
    if (match := CONDITION.fullmatch(text)) is None:
        raise SpecError(f"--where: expected a condition such as robust_accuracy<0.5 or device=cuda*, got {text!r}")
    return Condition(match[1], match[2], match[3].strip())


def check_condition(condition: Condition, known: Sequence[str] = RESULT_COLUMNS) -> None:
    """Raises SpecError where the condition names no column, or compares what has no order."""
    column, dot, entry = condition.column.partition(".")
    check_columns([column], known)
    if column == WHY:
        raise SpecError(f"{WHY} is put together from checks: ask for verdict=fail, or the view v_checks by robustq sql")
    if dot and column not in JSON_COLUMNS:
        raise SpecError(
            f"expected a column, got {condition.column!r}: only versions has parts, such as versions.{entry}"
        )
    if is_number(column):
        if typed_number(column, condition.value) is None and condition.operator not in ("=", "!="):
            raise SpecError(f"{column}: expected = or != before null, got {condition.operator}")
    elif condition.operator not in ("=", "!="):
        raise SpecError(f"{column} is text: expected {column}=VALUE or {column}!=VALUE, got {condition.operator}")


def check_columns(columns: Iterable[str], known: Sequence[str] = RESULT_COLUMNS) -> None:
    for column in columns:
        if column not in known:
            meant = did_you_mean(column, known)
            raise SpecError(f"there is no column {column!r}, expected one of: {', '.join(known)}{meant}")


def is_number(column: str) -> bool:
    """verdict and whatever else is added are text, unless a name below says how it is measured."""
    if column in TEXT_COLUMNS | JSON_COLUMNS:
        return False
    if column.startswith(EXPLANATION_MEASURES):
        return True
    return column in WHOLE_COLUMNS | TIME_COLUMNS | {"eps", "seconds"} or "_accuracy" in column or "distance" in column


def typed_number(column: str, text: str) -> float | None:
    """A number as people write it: 8/255, 0.03, null; a time also as 2026-11-24 or 2026-11-24T12:30, in UTC."""
    if text == NULL:
        return None
    value = read_number(text)
    if value is None and column in TIME_COLUMNS:
        value = moment(text)
    if value is None or not math.isfinite(value):
        expected = "a time such as 2026-11-24T12:30" if column in TIME_COLUMNS else "a number such as 8/255 or null"
        raise SpecError(f"{column}: expected {expected}, got {text!r}")
    return value


def moment(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def wild(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def fits(name: str, pattern: str) -> bool:
    """Whether a name is the pattern, or fits it: what `text_sql` asks the database."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), name, re.S) is not None
