"""Checks of an evaluation at one radius, beside those of its model."""

from collections.abc import Sequence

import torch

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction
from robustlib.checks.evaluation_checks import Attacked, above_chance, look_at_outcome
from robustlib.checks.idle_attacks import unmoved
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import CheckResult
from robustlib.datasets.lazy_images import ImageSet
from robustlib.evaluation.batches import Ready
from robustlib.inference.expectation import Expectation
from robustlib.inference.image_rows import ImageRows
from robustlib.inference.model_modes import evaluating, strict_float32
from robustlib.outcome import Outcome


def check_outcome(
    ready: Ready,
    images: ImageSet,
    outcome: Outcome,
    x_adv: Attacked,
    *,
    norm: Norm | None,
    eps: float | None,
    seed: int,
    attacks: Sequence[AttackFunction],
    eot_draws: int,
    device: torch.device,
) -> list[CheckResult]:
    """The model's checks, and those of the outcome.

    images: the whole data set.  x_adv: the attacked images in the outcome's order, at least those of `to_round`;
    of both only what is looked at is moved to the device.  norm, eps: the budget; no norm where what is done to images
    has none.  attacks: that ran, in turn.  eot_draws: of a randomised model's mean.
    """
    x = ImageRows(images, torch.from_numpy(outcome.index), device)
    y = torch.from_numpy(outcome.label).to(device)
    with strict_float32(), evaluating(ready.model):
        if ready.replicas is not None:
            own = look_at_outcome(
                ready.replicas.exact, x, y, x_adv, outcome, norm=norm, eps=eps, seed=seed,
                search=ready.replicas.for_radius(eps), attacks=attacks,
            )  # fmt: skip
            return [*ready.checks, *own]
        mean = Expectation(ready.model, eot_draws)
        own = [above_chance(outcome), normalisation(mean, x, y, outcome)]
        if norm is not None and eps != 0:
            own.append(unmoved(mean, x, y, outcome, attacks, norm=norm, eps=eps, seed=seed))
        return [*ready.checks, *own]
