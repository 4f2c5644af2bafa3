"""What an audit means as a job, and what the checks of evaluations leave in their rows."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import safetensors.torch
import torch

from jobs import artifacts, examples
from jobs.material import Context, Progress, Result, load_data, surroundings
from jobs.specs import EvalSpec
from robustlib.attacks.cascade import Attack
from robustlib.audit.audit import Audit, audit
from robustlib.checks.idle import unmoved
from robustlib.checks.limits import Finding, overall
from robustlib.checks.normalisation import normalisation
from robustlib.checks.quick import above_chance, look_at_outcome
from robustlib.evaluate import Ready
from robustlib.metrics import summarise
from robustlib.models.layers import Expectation
from robustlib.modes import as_images, evaluating, strict_float32
from robustlib.outcome import Outcome


def run_audit(spec: EvalSpec, context: Context, ready: Ready) -> Iterator[Progress | Result]:
    """Audit the model on the first examples of the test split, with a surrogate trained on its training split."""
    start = time.perf_counter()
    device = torch.device(context.device)
    test = load_data(spec.data, "test")
    try:
        train = load_data(spec.data, "train").x[:2000]
    except (ValueError, FileNotFoundError):
        train = None  # a data set to attack only has none: no surrogate can be trained, and none is in what was tried
    n = len(test.x) if spec.examples == "all" else min(spec.examples, len(test.x))
    assert spec.attack.norm is not None and spec.attack.eps is not None
    steps = audit(
        ready.model,
        as_images(torch.from_numpy(test.x[:n]), device),
        torch.from_numpy(test.y[:n]),
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
            yield audited(found, spec, context, time.perf_counter() - start)
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
    device, test = torch.device(context.device), load_data(spec.data, "test")
    x = as_images(torch.from_numpy(test.x[outcome.index]), device)
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
