"""The checks of an evaluation, as columns of its row."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from robustlib.checks.thresholds import CheckResult, overall


def verdict_columns(results: Sequence[CheckResult]) -> dict[str, Any]:
    """The columns of a result row that checks give: the verdict, and the checks to be stored beside it."""
    if not results:
        return {}
    return {"verdict": overall(results), "checks": [asdict(result) for result in results]}
