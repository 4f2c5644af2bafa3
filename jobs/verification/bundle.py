"""A bundle of a sweep: study, rows, outcomes, weights and sources in one file, for a reader who trusts nobody."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from robustlib import KERNEL_VERSION, VERSION
from robustlib.addresses import is_address, public
from robustlib.durable_files import replace
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.status import counts
from robustq.jobs.results.rows import sweep_spec
from robustq.jobs.store import artifacts
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.connection import Store
from robustq.jobs.store.explanations.measures import table_of
from robustq.jobs.store.schema import (
    artifact,
    audit,
    check_result,
    example_blob,
    job,
    job_artifact,
    job_dep,
    result,
    sweep_job,
)
from robustq.jobs.store.sweeps import find_sweep
from robustq.jobs.verification import bundle_format
from robustq.jobs.verification.bundle_format import JOBS, RESULTS, STUDY, Content
from robustq.jobs.verification.bundled_jobs import (
    KINDS,
    BundledJob,
    outcome_name,
    outcomes_csv,
    rows_csv,
    to_lines,
)
from robustq.jobs.verification.bundled_sources import sources, weights_files

OF_JOB = ("key", "kind", "spec", "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "subject")
SETTINGS = ("options", "params")
FOLDERS = re.compile(r"(?:^|(?<=:))(?:[~/]|[A-Za-z]:\\)[^:\n]*[/\\](?=[^/\\\n]+$)")  # before a file's name


def write_bundle(store: Store, name: str, path: Path, tell: Callable[[str], None]) -> str:
    """Write the latest sweep of this name to a file, in one piece; returns its fingerprint.

    tell: hears of what the sweep has and the bundle has not.  Raises SpecError where nothing of it is finished, and
    where a file that it rests on is gone or changed.
    """
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.name}.") as folder:
        members, about = collected(store, name, Path(folder))
        whole = Path(folder) / "bundle"
        fingerprint = bundle_format.write(whole, about, members)
        replace(whole, path)
    if left := {state: n for state, n in about["states"].items() if n and state != "done"}:
        told = ", ".join(f"{n} {state}" for state, n in left.items())
        tell(f"the bundle has finished jobs alone: of the sweep {name} {told} are not in it")
    return fingerprint


def collected(store: Store, name: str, folder: Path) -> tuple[dict[str, Content], dict[str, Any]]:
    """All members of a bundle, of which outcomes and artifacts are written to a folder, and what its manifest says."""
    members: dict[str, Content] = {}
    with store.begin() as db:
        sweep_id = find_sweep(db, name)
        assert sweep_id is not None
        jobs = finished_jobs(db, sweep_id)
        if not jobs:
            raise SpecError(f"the sweep {name} has no finished job: there is nothing to bundle")
        study = without_folders(sweep_spec(db, sweep_id))
        members[STUDY] = json.dumps(study, indent=1).encode() + b"\n"
        for number, one in jobs.items():
            if one.outcomes:
                target = folder / one.key
                target.write_bytes(outcomes_csv(table_of(db, number)))
                members[outcome_name(one.key)] = target
        about = {"robustq": VERSION, "kernel": KERNEL_VERSION, "sweep": name, "states": counts(db, sweep_id)}
    found = list(jobs.values())
    told = [BundledJob.model_validate(without_folders(one.model_dump())) for one in found]
    members |= {JOBS: to_lines(told), RESULTS: rows_csv(told)}
    for left in {left.sha256: left for one in found for left in one.artifacts.values()}.values():
        target = folder / left.sha256
        target.write_bytes(artifacts.get(store.artifacts, left.sha256))
        members[f"artifacts/{left.sha256}"] = target
    return members | weights_files(found) | sources(found), about


def finished_jobs(db: Connection, sweep_id: int) -> dict[int, BundledJob]:
    """The sweep's finished jobs by number, without shards, which their evaluations hold."""
    mine = select(job, sweep_job.c.model).join(sweep_job, sweep_job.c.job_id == job.c.id)
    chosen = (sweep_job.c.sweep_id == sweep_id) & (job.c.state == "done") & job.c.kind.in_(KINDS)
    rows = db.execute(mine.where(chosen).order_by(job.c.id)).mappings().all()
    ids = [row["id"] for row in rows]
    needed = job.alias("needed")
    left = select(job_artifact.c.job_id, job_artifact.c.role, artifact.c.sha256, artifact.c.bytes)
    left = left.join(artifact, artifact.c.sha256 == job_artifact.c.sha256)
    needs = select(job_dep.c.job_id, needed.c.key).join(needed, needed.c.id == job_dep.c.needs_id)
    of = {
        "results": by_job(db, select(result), ids),
        "checks": by_job(db, select(check_result).order_by(check_result.c.name), ids),
        "audits": by_job(db, select(audit), ids),
        "outcomes": by_job(db, select(example_blob.c.job_id), ids),
        "needs": by_job(db, needs.where(needed.c.kind != "shard").order_by(needed.c.key), ids),
        "left": by_job(db, left.where(job_artifact.c.role == "weights"), ids),
    }
    return {
        row["id"]: BundledJob.model_validate(
            {name: row[name] for name in (*OF_JOB, "model", "bundle_key", "cost")}
            | {
                "needs": [one["key"] for one in of["needs"].get(row["id"], ())],
                "result": without(of["results"][row["id"]][0], "job_id", "fence"),
                "checks": [without(one, "job_id") for one in of["checks"].get(row["id"], ())],
                "audit": next((without(one, "job_id") for one in of["audits"].get(row["id"], ())), None),
                "outcomes": row["id"] in of["outcomes"],
                "artifacts": {
                    one["role"]: {"sha256": one["sha256"], "bytes": one["bytes"]}
                    for one in of["left"].get(row["id"], ())
                },
            }
        )
        for row in rows
    }


def by_job(db: Connection, query: Any, ids: list[int]) -> dict[int, list[dict[str, Any]]]:
    """Rows of a selection that has `job_id`, by it, of these jobs."""
    column = query.selected_columns.job_id
    found: dict[int, list[dict[str, Any]]] = {}
    for some in chunks(ids):
        for row in db.execute(query.where(column.in_(some))).mappings():
            found.setdefault(row["job_id"], []).append(dict(row))
    return found


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def without_folders(data: Any) -> Any:
    """The data without the folders of this machine, which are no reader's business and part of no key.

    Settings of models, defences and attacks stay as they are: keys are of them.
    """
    if isinstance(data, dict):
        return {name: value if name in SETTINGS else without_folders(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_folders(value) for value in data]
    if not isinstance(data, str):
        return data
    return public(data) if is_address(data) else FOLDERS.sub("", data)
