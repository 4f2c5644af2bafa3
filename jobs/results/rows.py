"""Rows of results and what belongs to them. Never writes; loads no torch, and pyarrow only where it is asked for."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, select

from robustlib.number_text import counted
from robustq.jobs.reasons.reasons import reasons
from robustq.jobs.results.columns import RESULT_COLUMNS, WHY, ResultRow, Training, as_json
from robustq.jobs.results.conditions_sql import conditions, view
from robustq.jobs.results.filters import Filters
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, job_artifact, result, sweep, sweep_job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.text.notes import LOGGER
from robustq.jobs.text.tables import Row

# What the column `extra` tells of an evaluation, in the order of --json.
DETAILS = (
    "stages", "mode", "warmup_seconds", "forwards", "gradients", "overflows", "peak_memory_bytes", "curve_seconds",
    "check_seconds", "substitutions", "surrogate", "proved",
)  # fmt: skip


def chosen_rows(
    db: Connection, filters: Filters, columns: Sequence[str] = RESULT_COLUMNS, *, whole: bool = False
) -> list[ResultRow]:
    """The results that the filters leave, by sweep and job; of their columns these alone are read, others are missing.

    A job of several sweeps is a row of the latest of them; with `whole` a row of each, of a study's last version alone.
    """
    rows, given = view(), tuple(dict.fromkeys(columns))
    names = tuple(name for name in given if name != WHY)
    asked = (*names, "verdict", "job_id") if WHY in given else names
    query = select(*[rows.c[name].label(f"c{i}") for i, name in enumerate(asked)])
    query = query.where(*conditions(db, filters, rows, whole=whole)).order_by(rows.c.sweep_id, rows.c.job_id)
    read = db.execute(query).all()
    found = [dict(zip(names, row, strict=False)) for row in read]
    if "versions" in names:
        for row in found:
            row["versions"] = as_json(row["versions"])
    if WHY in given:
        why = reasons(db, {row[-1]: row[-2] for row in read})
        found = [
            {name: row[name] if name != WHY else why.get(one[-1]) for name in given}
            for row, one in zip(found, read, strict=True)
        ]
    LOGGER.info("%s read", counted(len(found), "result"))
    return cast("list[ResultRow]", found)


def result_rows(db: Connection, sweep_id: int | None = None) -> list[ResultRow]:
    """All results of a sweep, or of the store."""
    return chosen_rows(db, Filters(sweep_id))


def with_details(db: Connection, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with what each evaluation tells besides: its stages, the mode it ran in, what it cost."""
    extras: dict[int, Any] = {}
    for ids in chunks([row["job_id"] for row in rows]):
        chosen = select(result.c.job_id, result.c.extra).where(result.c.job_id.in_(ids))
        extras |= {id_: extra for id_, extra in db.execute(chosen)}
    return [{**row, **{name: (extras[row["job_id"]] or {}).get(name) for name in DETAILS}} for row in rows]


def trainings(db: Connection, sweep_id: int | None) -> list[Training]:
    """Finished trainings with their history, epoch by epoch."""
    rows = db.execute(
        select(sweep_job.c.model, job.c.arch, job.c.defence, job.c.seed, result.c.seconds, result.c.extra)
        .join(job, job.c.id == result.c.job_id)
        .join(sweep_job, sweep_job.c.job_id == job.c.id)
        .where((job.c.kind == "train") & (sweep_job.c.sweep_id == sweep_id))
        .order_by(job.c.id)
    ).mappings()
    return cast("list[Training]", [dict(row) for row in rows])


def artifact_of(db: Connection, job_id: int, role: str) -> str | None:
    """Hash of the file that a job left behind in this role."""
    chosen = (job_artifact.c.job_id == job_id) & (job_artifact.c.role == role)
    return db.execute(select(job_artifact.c.sha256).where(chosen)).scalar()


def with_artifact(db: Connection, job_ids: Sequence[int], role: str) -> set[int]:
    """Those of the jobs that left a file behind in this role."""
    found: set[int] = set()
    for ids in chunks(job_ids):
        chosen = job_artifact.c.job_id.in_(ids) & (job_artifact.c.role == role)
        found |= set(db.execute(select(job_artifact.c.job_id).where(chosen)).scalars())
    return found


def sweep_spec(db: Connection, sweep_id: int) -> dict[str, Any]:
    """The study that a sweep was submitted as."""
    return db.execute(select(sweep.c.spec).where(sweep.c.id == sweep_id)).scalar_one()


def weights_of_sweep(db: Connection, sweep_id: int) -> str:
    """Hash of the weights that the sweep's first training left."""
    chosen = job_artifact.c.job_id.in_(jobs_of(sweep_id)) & (job_artifact.c.role == "weights")
    return db.execute(select(job_artifact.c.sha256).where(chosen).order_by(job_artifact.c.job_id)).scalars().one()
