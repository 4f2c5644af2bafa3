"""The checks of an evaluation, as columns of its row."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from robustlib.attacks.types import AttackFunction
from robustlib.checks.evaluation_checks import above_chance, look_at_outcome
from robustlib.checks.idle_attacks import unmoved
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import CheckResult, overall
from robustlib.evaluation.evaluate import Ready
from robustlib.inference.expectation import Expectation
from robustlib.inference.model_modes import as_images, evaluating, strict_float32
from robustlib.outcome import Outcome
from robustq.jobs.running.context import Context
from robustq.jobs.running.inputs import load_data
from robustq.jobs.specs import EvalSpec


def verdict_columns(results: Sequence[CheckResult]) -> dict[str, Any]:
    """The columns of a result row that checks give: the verdict, and the checks to be stored beside it."""
    if not results:
        return {}
    return {"verdict": overall(results), "checks": [asdict(result) for result in results]}


def check_outcome(
    spec: EvalSpec,
    context: Context,
    ready: Ready,
    outcome: Outcome,
    x_adv: torch.Tensor,
    eps: float | None,
    attacks: Sequence[AttackFunction],
) -> list[CheckResult]:
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
