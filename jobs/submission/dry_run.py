"""The dry run, `--dry-run`: the jobs that a study would queue and their cost, with nothing queued."""

import contextlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import select

from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import SAMPLE, make_ready
from robustlib.inference.model_modes import as_images
from robustlib.inference.replica import Replica
from robustlib.inference.throughput import Rates, Work, calibrate
from robustq.jobs.running.inputs import build_model, load_data, unmeasured
from robustq.jobs.specs import DataRef, EvalSpec, ModelSpec, TrainSpec
from robustq.jobs.store.connection import open_store, store_exists
from robustq.jobs.store.schema import job
from robustq.jobs.submission import study_sources
from robustq.jobs.submission.cost import job_work, surrogate_work
from robustq.jobs.submission.expand_study import expand
from robustq.jobs.submission.plan import Planned
from robustq.jobs.text import tables


def dry_run(url: str, path: Path, changes: dict[str, Any], *, as_json: bool) -> str:
    """The jobs of a study with their cost, as text or JSON; nothing is queued. Jobs that are done cost nothing."""
    resolved = study_sources.resolve_file(path, changes)
    plan = expand(resolved)
    finished = done_keys(url)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates: dict[str, Rates] = {}

    def rates_of(model: ModelSpec) -> Rates:
        if model.key() not in rates:
            rates[model.key()] = measure(model, resolved.data, device)
        return rates[model.key()]

    rows = []
    for planned in plan:
        if not isinstance(planned.spec, TrainSpec | EvalSpec):
            continue  # worst cases read what the others stored
        done = planned.key in finished
        work = [] if done else [(planned.spec.model, job_work(planned, resolved))]
        work += [] if done else surrogate_work(planned.spec, resolved.data)
        seconds = sum(rates_of(model).seconds(passes) for model, passes in work)
        rows.append(row(planned, sum((passes for _, passes in work), Work(0)), seconds, done))
    total = {name: sum(row[name] or 0 for row in rows) for name in ("forwards", "gradients", "seconds")}
    if as_json:
        return tables.json_text({"device": str(device), "jobs": rows, "total": total})
    return tables.table(rows) + "\n" + sentence(total, len(rows), device) + no_gradient(rows)


def sentence(total: dict[str, Any], jobs: int, device: torch.device) -> str:
    return (
        f"{jobs} jobs: {total['forwards']:.3g} passes forward and {total['gradients']:.3g} gradients if no example "
        f"is misclassified early, {total['seconds']:.0f} s on one {device.type} worker of this machine"
    )


def no_gradient(rows: list[dict[str, Any]]) -> str:
    """What cannot run, in words."""
    stuck = [row for row in rows if row["seconds"] is None]
    names = ", ".join(dict.fromkeys(row["model"] for row in stuck))
    return f"\n{len(stuck)} of them will fail: they need a gradient, and {names} has none" if stuck else ""


def done_keys(url: str) -> set[str]:
    if not store_exists(url):
        return set()
    with open_store(url).begin() as db:
        return set(db.execute(select(job.c.key).where(job.c.state == "done")).scalars())


def measure(spec: ModelSpec, ref: DataRef, device: torch.device) -> Rates:
    """The model's rates on this device; a model that is yet to be trained is as quick as a trained one."""
    test = load_data(ref)
    model = build_model(unmeasured(spec, test), test, 0)
    x = LazyImages(test.images)
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints: stdout belongs to the estimate
        ready = make_ready(model, x, test.num_classes, device)
        images = as_images(x[:SAMPLE], device)
        return calibrate(Replica(ready.model, sizes=()) if ready.replicas is None else ready.replicas.search, images)


def row(planned: Planned, work: Work, seconds: float, done: bool) -> dict[str, Any]:
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
        "seconds": None if math.isnan(seconds) else round(seconds, 1),  # none: it needs a gradient that there is not
    }
