"""The result of an audit, as one object for programs and one page of plain words for people."""

from typing import Any

from sqlalchemy import Connection, select

from robustq.jobs.results.columns import as_json
from robustq.jobs.store.schema import check_result, job, result, sweep_job

CHECK = ("name", "value", "threshold", "verdict", "note", "examples")


def checks_of(db: Connection, job_id: int) -> list[dict[str, Any]]:
    """What was checked of a result, by name: value, threshold, verdict, note, examples that show it."""
    columns = [check_result.c[name] for name in CHECK]
    rows = db.execute(select(*columns).where(check_result.c.job_id == job_id).order_by(check_result.c.name)).mappings()
    return [dict(row) | {"examples": as_json(row["examples"])} for row in rows]


def audit_of(db: Connection, sweep_id: int) -> dict[str, Any]:
    """The sweep's first audit: verdict, cause, both accuracies, checks, and all that was tried."""
    row = (
        db.execute(
            select(
                job.c.id, job.c.norm, job.c.eps, job.c.seed, sweep_job.c.model, result.c.n, result.c.clean_accuracy,
                result.c.seconds, result.c.extra,
            )
            .join(result, result.c.job_id == job.c.id)
            .join(sweep_job, sweep_job.c.job_id == job.c.id)
            .where((sweep_job.c.sweep_id == sweep_id) & (job.c.attack == "audit"))
            .order_by(job.c.id)
        )
        .mappings()
        .first()
    )  # fmt: skip
    assert row is not None  # the sweep was made of it, and its failure is told before
    told = row["extra"]["audit"]
    named = ("model", "norm", "eps", "seed", "n", "clean_accuracy", "seconds")
    main = ("verdict", "cause", "naive_robust_accuracy", "adaptive_robust_accuracy")
    checks = checks_of(db, row["id"])
    return {name: told[name] for name in main} | {name: row[name] for name in named} | {
        "checks": checks, "tried": told["trials"], "left_out": told.get("left_out", []), "job_id": row["id"],
    }  # fmt: skip
