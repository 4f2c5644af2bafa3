"""The audit of a model as a job, and the columns that the checks of evaluations leave in their rows."""

import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace

import numpy as np
import safetensors.torch
import torch

from robustlib.attacks.surrogate_training import MOST
from robustlib.audit.audit import Audit, audit
from robustlib.datasets.choose import choose, spread_by_class
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import Ready
from robustlib.inference.model_modes import as_images
from robustlib.metrics import summarise
from robustq.jobs.running.checks import verdict_columns
from robustq.jobs.running.context import Context, Progress, Result, surroundings
from robustq.jobs.running.inputs import load_data, where_there
from robustq.jobs.specs import EvalSpec
from robustq.jobs.store import artifacts, example_outcomes


def run_audit(spec: EvalSpec, context: Context, ready: Ready) -> Iterator[Progress | Result]:
    """Audit the model on the chosen examples of a split, with a surrogate trained on the training split."""
    start = time.perf_counter()
    device = torch.device(context.device)
    test = load_data(spec.data)
    rows = choose(test.y, spec.examples, spec.choose)
    learnt_from = None  # a data set to attack only has none: no surrogate can be trained, and none is in what was tried
    if spec.data.split != "train":
        with where_there(spec.data):
            train = load_data(spec.data, "train")
            most = spread_by_class(train.y, MOST) if spec.attack.spread_pool else np.arange(min(MOST, len(train)))
            learnt_from = as_images(LazyImages(train.images)[torch.from_numpy(most)], device)
    assert spec.attack.norm is not None and spec.attack.eps is not None
    steps = audit(
        ready.model,
        as_images(torch.from_numpy(test.images[rows]), device),
        torch.from_numpy(test.y[rows]),
        norm=spec.attack.norm,
        eps=spec.attack.eps,
        seed=spec.seed,
        pool=learnt_from,
        device=device,
        ready=ready,
        **spec.attack.params,
    )
    for number, found in enumerate(steps):
        if isinstance(found, Audit):
            outcome = replace(found.outcome, index=rows[found.outcome.index])  # places in the split
            yield audited(replace(found, outcome=outcome), spec, context, time.perf_counter() - start)
        else:
            yield Progress(number, 15, found)


def audited(found: Audit, spec: EvalSpec, context: Context, seconds: float) -> Result:
    table = example_outcomes.to_table({f.name: getattr(found.outcome, f.name) for f in fields(found.outcome)})
    stored = ()
    if spec.images:
        packed = safetensors.torch.save({"x_adv": found.x_adv[: spec.images].contiguous()})
        stored = (artifacts.put(context.artifacts, "images", packed),)
    told = {
        "verdict": found.verdict,
        "cause": found.cause,
        "naive_robust_accuracy": found.naive_robust_accuracy,
        "adaptive_robust_accuracy": found.adaptive_robust_accuracy,
        "trials": [asdict(trial) for trial in found.trials],
        "left_out": [{"attack": attack, "why": why} for attack, why in found.left_out],
    }
    row = summarise(vars(found.outcome)) | surroundings(context) | {"seconds": seconds, "extra": {"audit": told}}
    return Result(row | verdict_columns(found.checks), example_outcomes.encode(table), stored)
