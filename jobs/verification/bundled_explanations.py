"""The explanation jobs of a bundle: what of their rows must follow from the measures of their images."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from robustlib.checks.explanation_sanity import explanation_checks
from robustlib.metrics import CLEAN
from robustq.jobs.statistics.explanation_means import clean_accuracy
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.explanations import measures
from robustq.jobs.verification.bundled_jobs import BundledJob

CLOSE = 1e-9  # relative: another processor may sum up a mean in another order


def images_of(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The places of the images, one row each, as outcomes of evaluations have them."""
    return {"index": columns["index"][columns["against"] == CLEAN]}


def measures_differ(one: BundledJob, columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Numbers of a row, and values of its checks, that do not follow from the measures of its images."""
    for name, value in clean_accuracy(columns).items():
        stored = getattr(one.result, name)
        if not close(stored, value):
            yield f"{one.told}: {name} is {stored}, its outcomes come to {value}"
    stored = {check.name: check.value for check in one.checks}
    for check in explanation_checks(columns):
        if not close(stored.get(check.name), check.value):
            yield f"{one.told}: its check {check.name} is {stored.get(check.name)}, its outcomes come to {check.value}"


def close(stored: Any, value: Any) -> bool:
    if stored is None or value is None:
        return stored is value
    return math.isclose(stored, value, rel_tol=CLOSE, abs_tol=CLOSE)


def encoded(one: BundledJob, table: pa.Table) -> bytes:
    """The outcomes of a job, or its measures, as a store has them."""
    return measures.encode(measures.to_columns(table)) if one.explains else example_outcomes.encode(table)
