"""The result of an audit: verdict, accuracies, checks, and all that was tried."""

from typing import TypedDict, cast

from sqlalchemy import Connection, select

from robustlib.checks.thresholds import LIMITS
from robustlib.number_text import percents
from robustq.jobs.results.columns import Check, as_json
from robustq.jobs.store.schema import check_result, job, result, sweep_job


class Trial(TypedDict):
    """An attack that an audit tried: how many images it attacked and broke, and what is left.

    remedy: what it does about masked gradients, "naive" for nothing.
    """

    attack: str
    remedy: str
    attacked: int
    broke: int
    robust_accuracy: float
    seconds: float


class LeftOut(TypedDict):
    """An attack that an audit did not try, and why."""

    attack: str
    why: str


class AuditFound(TypedDict):
    """An audit's verdict, both accuracies as fractions, and all that was tried."""

    verdict: str
    cause: str | None
    naive_robust_accuracy: float
    adaptive_robust_accuracy: float
    model: str
    norm: str
    eps: float
    seed: int
    n: int
    clean_accuracy: float
    seconds: float
    checks: list[Check]
    tried: list[Trial]
    left_out: list[LeftOut]
    job_id: int


def checks_of_job(db: Connection, job_id: int) -> list[Check]:
    """What was checked of a result, by name: value, threshold, verdict, note, examples that show it."""
    columns = [check_result.c[name] for name in Check.__annotations__]
    rows = db.execute(select(*columns).where(check_result.c.job_id == job_id).order_by(check_result.c.name)).mappings()
    return cast("list[Check]", [dict(row) | {"examples": as_json(row["examples"])} for row in rows])


def audit_of(db: Connection, sweep_id: int) -> AuditFound:
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
    return AuditFound(
        verdict=told["verdict"],
        cause=told["cause"],
        naive_robust_accuracy=told["naive_robust_accuracy"],
        adaptive_robust_accuracy=told["adaptive_robust_accuracy"],
        model=row["model"],
        norm=row["norm"],
        eps=row["eps"],
        seed=row["seed"],
        n=row["n"],
        clean_accuracy=row["clean_accuracy"],
        seconds=row["seconds"],
        checks=checks_of_job(db, row["id"]),
        tried=told["trials"],
        left_out=told.get("left_out", []),
        job_id=row["id"],
    )


def audit_headline(found: AuditFound) -> str:
    """The verdict in one sentence, with the number to quote."""
    naive, adaptive = percents((found["naive_robust_accuracy"], found["adaptive_robust_accuracy"]))
    match found["verdict"]:
        case "fail":
            failed = [c["name"] for c in found["checks"] if c["verdict"] == "fail" and LIMITS[c["name"]].blocking]
            said = f"{naive} % is no robust accuracy" + ("" if naive == adaptive else f"; at most {adaptive} % is")
            return f"FAIL: {said}. Failed: {', '.join(failed)}."
        case "warn":
            other = "" if naive == adaptive else f", not {naive} %"
            return f"WARN: quote {adaptive} %{other}, and look at what warned below."
    return f"PASS: {adaptive} % robust accuracy against everything that was tried."
