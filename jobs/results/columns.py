"""The columns of a result row."""

import json
from typing import Any, TypedDict


class ResultRow(TypedDict):
    """A row of v_results, its columns in the order in which they are shown and exported; and why it warns or fails.

    Accuracies are fractions, eps is in units of images in [0, 1], times are seconds; docs/schema.md says what each is.
    """

    sweep: str
    model: str
    arch: str | None
    defence: str | None
    dataset: str
    attack: str
    norm: str | None
    eps: float | None
    seed: int
    recipe: str
    n: int
    clean_accuracy: float
    clean_accuracy_low: float
    clean_accuracy_high: float
    robust_accuracy: float
    robust_accuracy_low: float
    robust_accuracy_high: float
    any_draw_accuracy: float
    verdict: str | None
    why: str | None
    distance_median: float | None
    distance_median_low: float | None
    distance_median_high: float | None
    distance_mean: float | None
    queries: int | None
    queries_most: int | None
    seconds: float
    device: str
    versions: dict[str, str]
    recorded_at: float
    key: str
    job_id: int


RESULT_COLUMNS = tuple(ResultRow.__annotations__)
WHY = "why"  # is put together from the checks: no column of the view, so that nothing can be asked of it

# The columns that have an option of their own, with what its help says.
FILTER_COLUMNS = {
    "model": "Models by name, or by a pattern such as 'b-*'.",
    "attack": "Attacks, such as autoattack or 'apgd-*'.",
    "eps": "Radii, such as 8/255; null for none.",
    "norm": "Linf, L2 or L1.",
    "arch": "Architectures.",
    "defence": "Training objectives; null for given weights.",
    "dataset": "Data sets as their study names them.",
    "seed": "Seeds.",
}


class Check(TypedDict):
    """What was checked of a result. examples: places in the test split that show it."""

    name: str
    value: float | None
    threshold: float | None
    verdict: str
    note: str
    examples: list[int]


class CheckRow(Check):
    """What was checked of one of many results."""

    job_id: int


class PageRow(ResultRow):
    """A result as the report has it. label: its attack, see attack_labels.py.  extra: what else it recorded.

    name: its model, with its seed where the sweep has several.
    """

    extra: dict[str, Any]
    label: str
    name: str


class Training(TypedDict):
    """A finished training. extra: its history, epoch by epoch."""

    model: str
    arch: str | None
    defence: str | None
    seed: int
    seconds: float
    extra: dict[str, Any]


def as_json(value: Any) -> Any:
    """A JSON column read through a view, which SQLite hands over as text."""
    return json.loads(value) if isinstance(value, str) else value
