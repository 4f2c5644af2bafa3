"""Two results of one job: alike, or different and named with where they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.explanations.measures import columns_of
from robustq.jobs.store.schema import example_blob, job, result, sweep_job
from robustq.jobs.text.safe_text import address

MEASURED = ("clean_accuracy", "robust_accuracy", "any_draw_accuracy", "distance_median", "distance_mean")


@dataclass(frozen=True)
class Difference:
    """Two results of one job: accuracies as fractions. Kept is the first."""

    job_id: int
    model: str
    attack: str | None
    norm: str | None
    eps: float | None
    seed: int
    kept_robust_accuracy: float | None
    kept_made_on: str
    other_robust_accuracy: float | None
    other_made_on: str


def results_of(db: Connection, ids: Sequence[int]) -> dict[int, Any]:
    """Rows of results with the hash of their outcomes, by job."""
    both = select(result, example_blob.c.sha256).join(
        example_blob, example_blob.c.job_id == result.c.job_id, isouter=True
    )
    return {row.job_id: row for row in db.execute(both.where(result.c.job_id.in_(ids)))}


def is_same(here: Connection, one: Any, there: Connection, other: Any) -> bool:
    """Whether two results agree in every number and outcome; how long they took, and where, may differ."""
    if any(getattr(one, name) != getattr(other, name) for name in MEASURED):
        return False
    if one.sha256 == other.sha256 or one.sha256 is None or other.sha256 is None:
        return True
    first, second = (columns_of(db, row.job_id) for db, row in ((here, one), (there, other)))
    return first.keys() == second.keys() and all(
        np.array_equal(values, second[name], equal_nan=values.dtype.kind == "f")
        for name, values in first.items()
        if name not in example_outcomes.COUNTED or ((values >= 0).any() and (second[name] >= 0).any())  # once not so
    )


def difference(here: Connection, own: Any, other: Any, target: Store, source: Store) -> Difference:
    """The two results of a job, `own` of the target, and where they come from."""
    told = here.execute(select(job.c.attack, job.c.norm, job.c.eps, job.c.seed).where(job.c.id == own.job_id))
    name = select(sweep_job.c.model).where(sweep_job.c.job_id == own.job_id).limit(1)
    return Difference(
        job_id=own.job_id,
        model=here.execute(name).scalar() or "",
        **told.mappings().one(),
        kept_robust_accuracy=own.robust_accuracy,
        kept_made_on=made_on(target, own),
        other_robust_accuracy=other.robust_accuracy,
        other_made_on=made_on(source, other),
    )


def made_on(store: Store, row: Any) -> str:
    """Where a result comes from, in words."""
    return f"{address(store.url)}, {row.device}, torch {row.versions.get('torch')}"
