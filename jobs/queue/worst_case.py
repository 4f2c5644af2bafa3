"""The worst case over evaluations, from the per-example outcomes they recorded: NumPy and Arrow, no model needed."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Connection, select

from robustlib import VERSION
from robustlib.checks.consistency import across_attacks
from robustlib.checks.thresholds import VERDICTS, CheckResult, overall
from robustlib.metrics import summarise
from robustq.jobs.queue.shards import joined
from robustq.jobs.queue.transitions import Claimed, finish
from robustq.jobs.specs import WorstSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.schema import example_blob, job, job_dep, result


def worst_case(tables: list[pa.Table], eps: float) -> dict[str, np.ndarray]:
    """For each example the outcome of the evaluation that did it most harm within eps; the first of equals.

    tables: per-example outcomes over the same examples, in a fixed order. A misclassified image farther away than eps
    does no harm at this radius: there the clean prediction stands.
    """
    columns = [example_outcomes.to_columns(table) for table in tables]
    first = columns[0]
    for other in columns[1:]:
        if not np.array_equal(other["index"], first["index"]):
            raise ValueError("expected evaluations of the same examples")
    harms = np.stack([outcome_within(c, eps)["adversarial_correct"] for c in columns])  # (evaluations, N)
    chosen = harms.argmin(0)
    rows = np.arange(len(chosen))
    within = [outcome_within(c, eps) for c in columns]
    return {name: np.stack([c[name] for c in within])[chosen, rows] for name in first}


def summary(columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """The numbers of a worst case. Of queries it has none: each image has those of the attack that did it most harm."""
    return summarise(columns) | {"queries": None, "queries_most": None}


def outcome_within(columns: dict[str, np.ndarray], eps: float) -> dict[str, np.ndarray]:
    """The outcome as it is at radius eps, where an image found beyond it does not count."""
    beyond = columns["success"] & (columns["distance"] > eps * (1 + 1e-5) + 1e-7)
    still = columns | {
        "adversarial_prediction": columns["clean_prediction"],
        "success": np.zeros_like(columns["success"]),
        "distance": np.full_like(columns["distance"], np.nan),
        "broken_by": np.zeros_like(columns["broken_by"]),
        "adversarial_correct": columns["clean_correct"],
        "adversarial_survived": columns["clean_correct"] == 1,
    }
    return {name: np.where(beyond, still[name], values) for name, values in columns.items()}


def verdict_of(results: Sequence[CheckResult], parts: Sequence[str]) -> dict[str, Any]:
    """The worst case is the lowest of its parts, so that one part that deserves trust is enough; and what their order
    tells.

    parts: verdicts of the evaluations.
    """
    best = min(parts, key=VERDICTS.index, default=None)
    told = [overall(results), best] if results else [best]
    verdict = max((one for one in told if one is not None), key=VERDICTS.index, default=None)
    return {"verdict": verdict, "checks": [asdict(one) for one in results]}


def settle(db: Connection, claimed: Claimed) -> bool:
    """Compute and record a claimed worst case, in the caller's transaction."""
    start = time.perf_counter()
    spec = WorstSpec.model_validate(claimed.spec)
    rows = db.execute(
        select(
            example_blob.c.data,
            result.c.device,
            result.c.versions,
            result.c.verdict,
            job.c.attack,
            job.c.norm,
            job.c.eps,
            job.c.recipe,
            job.c.spec,
        )
        .join(job_dep, job_dep.c.needs_id == example_blob.c.job_id)
        .join(job, job.c.id == example_blob.c.job_id)
        .join(result, result.c.job_id == example_blob.c.job_id)
        .where(job_dep.c.job_id == claimed.id)
        .order_by(job.c.key)
    ).all()
    tables = [example_outcomes.decode(row.data) for row in rows]
    columns = worst_case(tables, spec.eps)
    data = example_outcomes.encode(example_outcomes.to_table(columns))
    # Their numbers were made with the versions that the parts name, their worst case by this release.
    row = summary(columns) | {
        "device": "; ".join(dict.fromkeys(one.device for one in rows)),
        "versions": joined([one.versions for one in rows]) | {"robustq": VERSION},
    }
    results = across_attacks(
        [row.attack for row in rows],
        [row.eps for row in rows],
        [example_outcomes.to_columns(table) for table in tables],
        [row.recipe for row in rows],
        [bool(row.spec["attack"]["curve"]) for row in rows],
    )
    row |= verdict_of(results, [one.verdict for one in rows if one.verdict is not None])
    row |= {"seconds": time.perf_counter() - start}
    return finish(db, claimed, row, (data, row["n"]))
