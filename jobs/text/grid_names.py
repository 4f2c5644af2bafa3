"""Names of models that a grid made: `robust[steps=10,epochs=20]`, written, read, and as columns of results."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from robustq.jobs.errors import SpecError
from robustq.jobs.text.number_parsing import read_number
from robustq.jobs.text.tables import Row

NAME = re.compile(r"(?P<base>.*)\[(?P<settings>[^\[\]=]+=[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]", re.S)
SPLIT = re.compile(r",(?=[\w.]+=)")  # before a setting, not within a value such as a list
BASE, SETTING = "base", "setting."  # what a model is called without its settings, and before the name of one


def grid_name(base: str, settings: Mapping[str, str]) -> str:
    """The name of one point."""
    return f"{base}[{','.join(f'{name}={value}' for name, value in settings.items())}]"


def grid_settings(name: str) -> tuple[str, dict[str, str]]:
    """What the model was called before the grid, and its settings as they were written; none for any other name."""
    match = NAME.fullmatch(name)
    if match is None:
        return name, {}
    pairs = [part.partition("=") for part in SPLIT.split(match["settings"])]
    return match["base"], {setting: value for setting, _, value in pairs}


def is_setting(column: str) -> bool:
    """Whether a column is of grids: `base`, or `setting.NAME`."""
    return column == BASE or (column.startswith(SETTING) and len(column) > len(SETTING))


def with_settings(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows with these columns: numbers where they are some, None for a model without the setting.

    Raises SpecError for a setting that no model has, with those there are.
    """
    found: list[dict[str, Any]] = []
    known = set[str]()
    for row in rows:
        base, settings = grid_settings(row["model"])
        known |= settings.keys()
        values = {f"{SETTING}{name}": value_of(text) for name, text in settings.items()} | {BASE: base}
        found.append({**row, **{column: values.get(column) for column in columns}})
    for column in columns:
        if rows and column != BASE and column.removeprefix(SETTING) not in known:
            raise SpecError(f"no model has the setting {column!r}, expected one of: {named(known)}")
    return found


def named(known: set[str]) -> str:
    return ", ".join(f"{SETTING}{name}" for name in sorted(known)) or "none, since no study has a grid"


def value_of(text: str) -> float | str:
    value = read_number(text)
    return text if value is None else int(value) if value == int(value) and "." not in text else value
