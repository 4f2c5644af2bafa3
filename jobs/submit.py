"""Putting a study into the store: each job once, whoever asks for it and however often."""

import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from jobs.engine import Store, open_store, store_exists
from jobs.plan import Planned, Resolved, expand, resolve
from jobs.schema import job, job_dep, sweep, sweep_job
from jobs.specs import EvalSpec, TrainSpec, WorstSpec
from jobs.study import Origin, Study


@dataclass(frozen=True)
class Submitted:
    """What submitting did: the sweep, its number of jobs, how many of them are new to the store."""

    sweep_id: int
    name: str
    jobs: int
    new: int

    @property
    def line(self) -> str:
        """For people: what is queued now and was not before."""
        return f"sweep {self.name}: {self.jobs} jobs, {self.new} of them new"


def submit(url: str, study: Study, origin: Origin, folder: Path, *, data_folder: Path) -> tuple[Store, Submitted]:
    """Expand a study and queue what the store does not know yet, all in one transaction; makes a store if need be.

    A study that the store knows whole is recognised by its hash, without loading torch. Raises SpecError before
    anything is written or made.
    """
    resolved = resolve(study, origin, folder, data_folder)
    if store_exists(url):
        store = open_store(url, write=True)
        with store.begin() as db:
            known = db.execute(select(sweep.c.id).where(sweep.c.identity == resolved.identity)).scalar()
            if known is not None:
                return store, Submitted(known, study.name, count_jobs(db, known), 0)
    plan = expand(resolved)
    store = open_store(url, create=True, write=True)
    with store.begin() as db:
        return store, record(db, resolved, plan)


def count_jobs(db: Connection, sweep_id: int) -> int:
    return db.execute(select(sa.func.count()).where(sweep_job.c.sweep_id == sweep_id)).scalar_one()


def record(db: Connection, resolved: Resolved, plan: list[Planned]) -> Submitted:
    """Insert the sweep, its new jobs and their dependencies; dependencies stand before their dependents in `plan`."""
    now = time.time()
    known = db.execute(select(sweep.c.id).where(sweep.c.identity == resolved.identity)).scalar()
    if known is not None:  # another process submitted the same study meanwhile
        return Submitted(known, resolved.study.name, count_jobs(db, known), 0)
    spec = resolved.study.model_dump(mode="json")
    values = {"name": resolved.study.name, "spec": spec, "identity": resolved.identity, "created_at": now}
    sweep_id = db.execute(sa.insert(sweep).values(**values).returning(sweep.c.id)).scalar_one()
    found: dict[str, tuple[int, str]] = {}
    new = 0
    for planned in plan:
        row = db.execute(select(job.c.id, job.c.state).where(job.c.key == planned.key)).first()
        if row is None:
            state = initial_state([found[key][1] for key in planned.needs])
            job_id = db.execute(sa.insert(job).values(columns(planned, state, now)).returning(job.c.id)).scalar_one()
            for key in planned.needs:
                db.execute(sa.insert(job_dep).values(job_id=job_id, needs_id=found[key][0]))
            found[planned.key] = job_id, state
            new += 1
        else:
            found[planned.key] = row.id, row.state
        db.execute(sa.insert(sweep_job).values(sweep_id=sweep_id, job_id=found[planned.key][0], model=planned.model))
    return Submitted(sweep_id, resolved.study.name, len(plan), new)


def initial_state(needed: list[str]) -> str:
    """The state of a new job, from the states of those it needs."""
    for ended in ("failed", "cancelled"):
        if ended in needed:
            return ended
    return "queued" if all(state == "done" for state in needed) else "blocked"


def columns(planned: Planned, state: str, now: float) -> dict[str, Any]:
    """A job's row: the spec whole, and what people ask for as columns of its own."""
    spec = planned.spec
    row: dict[str, Any] = {
        "key": planned.key,
        "kind": spec.kind,
        "spec": spec.model_dump(mode="json"),
        "dataset": planned.dataset,
        "seed": planned.seed,
        "arch": planned.arch,
        "defence": planned.defence,
        "cost": planned.cost,
        "state": state,
        "created_at": now,
    }
    if state in ("failed", "cancelled"):
        row |= {"error_class": "UpstreamFailed", "error_message": "a job that it needs failed or was cancelled earlier"}
    match spec:
        case TrainSpec():
            share = planned.key  # a training runs by itself, and first: others wait for it
            row |= {"priority": 1}
        case EvalSpec():
            row |= {
                "attack": spec.attack.name,
                "norm": spec.attack.norm,
                "eps": spec.attack.eps,
                "recipe": spec.attack.recipe,
            }
            share = f"{spec.data.sha256}/{spec.train or spec.model.key()}"
            if spec.attack.curve:  # the radii of a curve stay together: whoever runs one has run them all
                share += f"/{spec.attack.recipe}/{spec.attack.norm}/{spec.attack.curve}/{spec.examples}/{spec.seed}"
        case WorstSpec():
            row |= {"attack": "worst-case", "norm": spec.norm, "eps": spec.eps, "recipe": f"worst of {len(spec.evals)}"}
            share = "worst"
    return row | {"bundle_key": sha256(share.encode()).hexdigest()}
