"""One spelling of plain data, which keys and hashes are made of."""

import json
from typing import Any


def canonical(data: Any) -> str:
    """One spelling for equal data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def without_places(data: Any) -> Any:
    """The data without every `place`: where a file lies is not part of what a job does, its content is."""
    if isinstance(data, dict):
        return {name: without_places(value) for name, value in data.items() if name != "place"}
    return [without_places(value) for value in data] if isinstance(data, list) else data
