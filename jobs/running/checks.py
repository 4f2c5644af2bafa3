"""The checks of an evaluation, as columns of its row."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from robustlib.checks.thresholds import Finding, overall


def verdict_columns(findings: Sequence[Finding]) -> dict[str, Any]:
    """The columns of a result row that checks give: the verdict, and the checks to be stored beside it."""
    if not findings:
        return {}
    return {"verdict": overall(findings), "checks": [asdict(finding) for finding in findings]}
