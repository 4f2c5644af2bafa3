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
from robustlib.gpu_failures import asks_for_a_gpu
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
    rates: dict[str, Rates | None] = {}

    def rates_of(model: ModelSpec) -> Rates | None:
        if model.key() not in rates:
            rates[model.key()] = measure(model, resolved.data, device)
        return rates[model.key()]

    rows, without_gpu = list[dict[str, Any]](), list[dict[str, Any]]()
    for planned in plan:
        if not isinstance(planned.spec, TrainSpec | EvalSpec):
            continue  # worst cases read what the others stored
        done = planned.key in finished
        work = [] if done else [(planned.spec.model, job_work(planned, resolved))]
        work += [] if done else surrogate_work(planned.spec, resolved.data)
        found = [(rates_of(model), passes) for model, passes in work]
        seconds = sum(math.nan if rate is None else rate.seconds(passes) for rate, passes in found)
        rows.append(row(planned, sum((passes for _, passes in work), Work(0)), seconds, done))
        if any(rate is None for rate, _ in found):
            without_gpu.append(rows[-1])
    total = {name: sum(row[name] or 0 for row in rows) for name in ("forwards", "gradients", "seconds")}
    if as_json:
        told = {"device": str(device), "jobs": rows, "total": total}
        return tables.json_text(told | {"not_measured": list(dict.fromkeys(row["model"] for row in without_gpu))})
    measured = [row for row in rows if not any(row is other for other in without_gpu)]
    notes = no_gradient(measured) + not_measured(without_gpu)
    return tables.table(rows) + "\n" + sentence(total, len(rows), device) + notes


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


def not_measured(rows: list[dict[str, Any]]) -> str:
    """What asks for a GPU where there is none, in words."""
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    why = "the model or its surrogate asks for a GPU, which this machine has not"
    return f"\n{len(rows)} of them, of {names}, were not measured and are not in these seconds: {why}" if rows else ""


def done_keys(url: str) -> set[str]:
    if not store_exists(url):
        return set()
    with open_store(url).begin() as db:
        return set(db.execute(select(job.c.key).where(job.c.state == "done")).scalars())


def measure(spec: ModelSpec, ref: DataRef, device: torch.device) -> Rates | None:
    """The model's rates on this device; a model that is yet to be trained is as quick as a trained one. None for one
    that asks for a GPU on a machine without.
    """
    try:
        return rates_on(spec, ref, device)
    except Exception as error:  # of a factory, or of what the model calls
        if not asks_for_a_gpu(error):
            raise
        return None


def rates_on(spec: ModelSpec, ref: DataRef, device: torch.device) -> Rates:
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
