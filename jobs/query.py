"""Reading results and what belongs to them. Never writes; loads no torch, and pyarrow only where it is asked for."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from jobs.errors import SpecError
from jobs.insert import chunks
from jobs.schema import example_blob, job, job_artifact, result, sweep, sweep_job
from jobs.states import jobs_of

if TYPE_CHECKING:
    import pyarrow as pa

# The columns of v_results, in the order in which they are shown and exported.
RESULT_COLUMNS = (
    "sweep", "model", "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "n",
    "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high",
    "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high", "any_draw_accuracy", "verdict",
    "distance_median", "distance_mean", "seconds", "device", "versions", "recorded_at", "key", "job_id",
)  # fmt: skip


# What the column `extra` tells of an evaluation, in the order of --json.
DETAILS = (
    "stages", "mode", "warmup_seconds", "forwards", "gradients", "overflows", "peak_memory_bytes", "curve_seconds",
    "substitutions", "surrogate",
)  # fmt: skip

Asked = str | float | Sequence[str | float] | None  # what a column is asked for: a value, or several


def results(
    store: str = "sqlite:///.robustq/results.db",
    *,
    sweep: str | None = None,
    model: Asked = None,
    attack: Asked = None,
    eps: Asked = None,
    norm: Asked = None,
    arch: Asked = None,
    defence: Asked = None,
    dataset: Asked = None,
    seed: Asked = None,
    where: str | Sequence[str] = (),
    group: str | Sequence[str] | None = None,
    over_seeds: bool = False,
    pivot: bool = False,
    sort: str | Sequence[str] | None = None,
    best: str | None = None,
    compare: Sequence[str | int] | None = None,
) -> "pa.Table":
    """The rows that `robustq results` prints, as an Arrow table: fractions, with the columns of docs/schema.md.

    store: URL, or path of an SQLite file; it is opened for reading.  model to seed: a value or several of which one
    must fit, texts also by pattern.  where: conditions such as "robust_accuracy<0.5".  group to compare: as the options
    of these names.  Raises SpecError and StoreError.
    """
    from jobs.answers import answer, columns_of, make_question
    from jobs.engine import open_store
    from jobs.export import rows_table
    from jobs.filters import make_filters

    named = {
        "model": model, "attack": attack, "eps": eps, "norm": norm, "arch": arch, "defence": defence,
        "dataset": dataset, "seed": seed,
    }  # fmt: skip
    shape = {"group": group, "over_seeds": over_seeds, "pivot": pivot, "sort": sort, "best": best, "compare": compare}
    asked = make_question(make_filters(sweep, named, where), **shape)
    opened = open_store(store)
    try:
        with opened.begin() as db:
            rows = answer(db, asked)
            return rows_table(rows, columns_of(rows, asked))
    finally:
        opened.engine.dispose()


def view() -> Any:
    """v_results, as something to select from."""
    return sa.table("v_results", *[sa.column(name) for name in (*RESULT_COLUMNS, "sweep_id")])


def result_rows(db: Connection, sweep_id: int | None = None, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of v_results, those of one sweep or all; a job of several sweeps is shown in the latest."""
    rows = view()
    query = select(*[rows.c[name] for name in RESULT_COLUMNS])
    if sweep_id is not None:
        query = query.where(rows.c.sweep_id == sweep_id)
    else:
        latest = select(sa.func.max(sweep_job.c.sweep_id)).where(sweep_job.c.job_id == rows.c.job_id).scalar_subquery()
        query = query.where(rows.c.sweep_id == latest)
    if keys is not None:
        query = query.where(rows.c.key.in_(keys))
    found = db.execute(query.order_by(rows.c.sweep_id, rows.c.job_id)).mappings()
    return [dict(row) | {"versions": as_json(row["versions"])} for row in found]


def with_details(db: Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what each evaluation tells besides: its stages, the mode it ran in, what it cost."""
    extras: dict[int, Any] = {}
    for ids in chunks([row["job_id"] for row in rows]):
        chosen = select(result.c.job_id, result.c.extra).where(result.c.job_id.in_(ids))
        extras |= {id_: extra for id_, extra in db.execute(chosen)}
    return [row | {name: (extras[row["job_id"]] or {}).get(name) for name in DETAILS} for row in rows]


def as_json(value: Any) -> Any:
    """A JSON column read through a view, which SQLite hands over as text."""
    return json.loads(value) if isinstance(value, str) else value


def trainings(db: Connection, sweep_id: int | None) -> list[dict[str, Any]]:
    """Finished trainings with their history, epoch by epoch."""
    rows = db.execute(
        select(sweep_job.c.model, job.c.arch, job.c.defence, job.c.seed, result.c.seconds, result.c.extra)
        .join(job, job.c.id == result.c.job_id)
        .join(sweep_job, sweep_job.c.job_id == job.c.id)
        .where((job.c.kind == "train") & (sweep_job.c.sweep_id == sweep_id))
        .order_by(job.c.id)
    ).mappings()
    return [dict(row) for row in rows]


def examples_of(db: Connection, job_id: int) -> Any:
    """Per-example outcomes of a finished evaluation, as a pyarrow Table. Raises SpecError where the store lost them."""
    import pyarrow as pa

    from jobs import examples

    data = db.execute(select(example_blob.c.data).where(example_blob.c.job_id == job_id)).scalar()
    try:
        if data is not None:
            return examples.decode(data)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise SpecError(LOST.format(job_id, "damaged")) from error
    raise SpecError(LOST.format(job_id, "missing"))


LOST = "the outcomes of the single images of job {0} are {1} in the store: robustq retry {0} evaluates it again"


def artifact_of(db: Connection, job_id: int, role: str) -> str | None:
    """Hash of the file that a job left behind in this role."""
    chosen = (job_artifact.c.job_id == job_id) & (job_artifact.c.role == role)
    return db.execute(select(job_artifact.c.sha256).where(chosen)).scalar()


def sweep_spec(db: Connection, sweep_id: int) -> dict[str, Any]:
    """The study that a sweep was submitted as."""
    return db.execute(select(sweep.c.spec).where(sweep.c.id == sweep_id)).scalar_one()


def weights_of_sweep(db: Connection, sweep_id: int) -> str:
    """Hash of the weights that the sweep's first training left."""
    chosen = job_artifact.c.job_id.in_(jobs_of(sweep_id)) & (job_artifact.c.role == "weights")
    return db.execute(select(job_artifact.c.sha256).where(chosen).order_by(job_artifact.c.job_id)).scalars().one()
