"""The columns of a result row, and the view that holds them."""

import json
from typing import Any

import sqlalchemy as sa

# The columns of v_results, in the order in which they are shown and exported.
RESULT_COLUMNS = (
    "sweep", "model", "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "n",
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high", "any_draw_accuracy", "verdict",
    "distance_median", "distance_mean", "seconds", "device", "versions", "recorded_at", "key", "job_id",
)  # fmt: skip


def view() -> Any:
    """v_results, as something to select from."""
    return sa.table("v_results", *[sa.column(name) for name in (*RESULT_COLUMNS, "sweep_id")])


def as_json(value: Any) -> Any:
    """A JSON column read through a view, which SQLite hands over as text."""
    return json.loads(value) if isinstance(value, str) else value
