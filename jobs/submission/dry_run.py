"""The dry run, `--dry-run`: the jobs that a study would queue and what they will take, with nothing queued."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select

from robustlib.inference.throughput import Clock, Work
from robustq.jobs.queue.pace import Pace, learnt_pace
from robustq.jobs.running.context import Context, surroundings
from robustq.jobs.specs import EvalSpec, TrainSpec
from robustq.jobs.store.connection import open_store, store_exists
from robustq.jobs.store.schema import job
from robustq.jobs.submission import study_sources
from robustq.jobs.submission.calibration import Calibrations
from robustq.jobs.submission.cost import job_work, surrogate_work
from robustq.jobs.submission.expand_study import expand
from robustq.jobs.submission.expected import Estimator, estimator
from robustq.jobs.submission.plan import Planned, Resolved
from robustq.jobs.submission.wall_time import FindSlots, Slots, wall_seconds
from robustq.jobs.text import tables
from robustq.jobs.text.durations import duration


def one_slot(jobs: int, gpus: int) -> Slots:
    return Slots(1, torch.get_num_threads())


def dry_run(url: str, path: Path, changes: dict[str, Any], *, as_json: bool, find_slots: FindSlots = one_slot) -> str:
    """The jobs of a study with what they will take, as text or JSON; nothing is queued. Jobs that are done take
    nothing.
    """
    resolved = study_sources.resolve_file(path, changes)
    plan = expand(resolved)
    slots = slots_for(plan, find_slots)
    estimates = make_estimator(url, resolved, plan, slots)
    rows, without_gpu, seconds = list[dict[str, Any]](), list[dict[str, Any]](), dict[str, float]()
    for planned in plan:
        if not isinstance(planned.spec, TrainSpec | EvalSpec):
            continue  # worst cases read what the others stored
        done = planned.key in estimates.done
        work = (
            [] if done else [job_work(planned, resolved), *(w for _, w in surrogate_work(planned.spec, resolved.data))]
        )
        found = estimates.seconds(planned)
        rows.append(row(planned, sum(work, Work(0)), found, done))
        seconds[planned.key] = rows[-1]["seconds"] or 0.0
        if found is None:
            without_gpu.append(rows[-1])
    total = {name: sum(row[name] or 0 for row in rows) for name in ("forwards", "gradients", "seconds")}
    total |= {"slots": slots.count, "wall_seconds": round(wall_seconds(plan, seconds, slots.count), 1)}
    if as_json:
        told = {"device": str(device_here()), "jobs": rows, "total": total}
        return tables.json_text(told | {"not_measured": list(dict.fromkeys(row["model"] for row in without_gpu))})
    measured = [row for row in rows if not any(row is other for other in without_gpu)]
    notes = no_gradient(measured) + not_measured(without_gpu)
    return tables.table(rows) + "\n" + sentence(total, len(rows), slots) + notes


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def slots_for(plan: Sequence[Planned], find_slots: FindSlots) -> Slots:
    """The slots of this machine that jobs of this plan will have."""
    kinds = [planned.spec.kind for planned in plan]
    gpus = torch.cuda.device_count() if device_here().type == "cuda" else 0
    return find_slots(max(1, kinds.count("train"), kinds.count("eval")), gpus)


def make_estimator(url: str, resolved: Resolved, plan: Sequence[Planned], slots: Slots, **clock: Clock) -> Estimator:
    """What these jobs take here, by what the store knows of this machine's device and by calibrations."""
    device = device_here()
    pace, done = Pace(), frozenset[str]()
    if store_exists(url):
        with open_store(url).begin() as db:
            done = frozenset(db.execute(select(job.c.key).where(job.c.state == "done")).scalars())
            pace = learnt_pace(db, surroundings(Context(str(device), ""))["device"])
    return estimator(resolved, plan, Calibrations(resolved.data, device, slots.threads, **clock), pace=pace, done=done)


def sentence(total: dict[str, Any], jobs: int, slots: Slots) -> str:
    return (
        f"{jobs} jobs: at most {total['forwards']:.3g} passes forward and {total['gradients']:.3g} gradients, "
        f"{duration(total['seconds'])} of work; about {duration(total['wall_seconds'])} on this machine, "
        f"{slots.count} jobs at a time"
    )


def no_gradient(rows: list[dict[str, Any]]) -> str:
    """What cannot run, in words."""
    stuck = [row for row in rows if row["seconds"] is None]
    names = ", ".join(dict.fromkeys(row["model"] for row in stuck))
    return f"\n{len(stuck)} of them will fail: they need a gradient, and {names} has none" if stuck else ""


def not_measured(rows: list[dict[str, Any]]) -> str:
    """What asks for a GPU where there is none, in words."""
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    why = "the model or its surrogate asks for a GPU, which this machine has not"
    return f"\n{len(rows)} of them, of {names}, were not measured and are not in these seconds: {why}" if rows else ""


def row(planned: Planned, work: Work, seconds: float | None, done: bool) -> dict[str, Any]:
    spec = planned.spec
    attack = spec.attack if isinstance(spec, EvalSpec) else None
    return {
        "job": spec.kind,
        "model": planned.model,
        "attack": None if attack is None else attack.name,
        "norm": None if attack is None else attack.norm,
        "eps": None if attack is None else attack.eps,
        "seed": planned.seed,
        "done": done,
        "forwards": work.forwards,
        "gradients": work.gradients,
        # None: it needs a gradient that there is not, or was not measured.
        "seconds": None if seconds is None or math.isnan(seconds) else round(seconds, 1),
    }
