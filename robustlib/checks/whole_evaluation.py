"""Checks of an evaluation that need all of its examples: with shards, made once these are put together."""

from typing import Any

import numpy as np

from robustlib.checks.consistency import accuracy_rise, across_stages
from robustlib.checks.thresholds import CheckResult


def check_whole(
    columns: dict[str, np.ndarray], extra: dict[str, Any], eps: float | None, draws: int
) -> list[CheckResult]:
    """What the evaluation's own stages and its own radii tell of each other.

    columns: its outcomes.  extra: what its row tells besides.  draws: by which a randomised model is scored.
    """
    found = across_stages([stage["attack"] for stage in extra.get("stages", ())], columns)
    if eps is not None and "radii" in extra:
        found.append(
            accuracy_rise(eps, {radius: accuracy for radius, accuracy in extra["radii"]}, len(columns["index"]), draws)
        )
    return found
