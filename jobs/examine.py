"""What an audit means as a job, and what the checks of evaluations leave in their rows."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import safetensors.torch
import torch

from jobs import artifacts, examples
from jobs.material import Context, Progress, Result, load_data, surroundings, where_there
from jobs.specs import EvalSpec
from robustlib.attacks.cascade import Attack
from robustlib.audit.audit import Audit, audit
from robustlib.checks.idle import unmoved
from robustlib.checks.limits import Finding, overall
from robustlib.checks.normalisation import normalisation
from robustlib.checks.quick import above_chance, look_at_outcome
from robustlib.datasets.choose import choose
from robustlib.evaluate import Ready
from robustlib.metrics import summarise
from robustlib.models.layers import Expectation
from robustlib.modes import as_images, evaluating, strict_float32
from robustlib.outcome import Outcome


def run_audit(spec: EvalSpec, context: Context, ready: Ready) -> Iterator[Progress | Result]:
    """Audit the model on the chosen examples of a split, with a surrogate trained on the training split."""
    start = time.perf_counter()
    device = torch.device(context.device)
    test = load_data(spec.data)
    rows = choose(test.y, spec.examples, spec.choose)
    train = None  # a data set to attack only has none: no surrogate can be trained, and none is in what was tried
    if spec.data.split != "train":
        with where_there(spec.data):
            train = load_data(spec.data, "train").images[:2000]
    assert spec.attack.norm is not None and spec.attack.eps is not None
    steps = audit(
        ready.model,
        as_images(torch.from_numpy(test.images[rows]), device),
        torch.from_numpy(test.y[rows]),
        norm=spec.attack.norm,
        eps=spec.attack.eps,
        seed=spec.seed,
        pool=None if train is None else as_images(torch.from_numpy(train), device),
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
    table = examples.to_table({f.name: getattr(found.outcome, f.name) for f in fields(found.outcome)})
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
    return Result(row | verdict_columns(found.findings), examples.encode(table), stored)


def verdict_columns(findings: Sequence[Finding]) -> dict[str, Any]:
    """The columns of a result row that checks give: the verdict, and the checks to be stored beside it."""
    if not findings:
        return {}
    return {"verdict": overall(findings), "checks": [asdict(finding) for finding in findings]}


def check_outcome(
    spec: EvalSpec,
    context: Context,
    ready: Ready,
    outcome: Outcome,
    x_adv: torch.Tensor,
    eps: float | None,
    attacks: Sequence[Attack],
) -> list[Finding]:
    """The checks of an evaluation at one radius, with those of its model. attacks: that ran, in turn."""
    device, test = torch.device(context.device), load_data(spec.data)
    x = as_images(torch.from_numpy(test.images[outcome.index]), device)
    y = torch.from_numpy(outcome.label).to(device)
    norm: Any = spec.attack.norm
    with strict_float32(), evaluating(ready.model):
        if ready.engines is not None:
            own = look_at_outcome(
                ready.engines.exact, x, y, x_adv.to(device), outcome, norm=norm, eps=eps, seed=spec.seed,
                search=ready.engines.suited(eps), attacks=attacks,
            )  # fmt: skip
            return [*ready.findings, *own]
        mean = Expectation(ready.model, spec.eot_draws)
        own = [above_chance(outcome), normalisation(mean, x, y, outcome)]
        if norm is not None and eps != 0:
            own.append(unmoved(mean, x, y, outcome, attacks, norm=norm, eps=eps, seed=spec.seed))
        return [*ready.findings, *own]
