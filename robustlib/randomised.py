"""Models that change their answer: attacked through the expectation over their randomness, scored on fresh draws."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.attacks.cascade import Attack
from robustlib.draws import Draws
from robustlib.metrics import NOTHING
from robustlib.models.layers import Expectation
from robustlib.norms import size
from robustlib.outcome import Batch, check_budget, judge, score
from robustlib.settings import Norm

GROUP = 100  # examples that share their passes: a model's own noise comes from torch's generator, seeded by group


def judge_randomised(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    own: Draws,
    norm: Norm,
    eps: float | None,
    named: Sequence[tuple[str, Attack]],
    draws: int,
    eot_draws: int,
) -> Batch:
    """A group's outcome at one radius, for a model that changes its answer."""
    names = [name for name, _ in named]
    x_adv, by, seconds = strongest(model, x, y, [attack for _, attack in named], draws=own, eot_draws=eot_draws)
    check_budget(x_adv, x, norm, eps, names)
    clean, attacked = score(model, x, y, draws), score(model, x_adv, y, draws)
    names = np.array([*names, NOTHING])
    unknown = torch.full_like(y, -1)  # every attack meets every example: none of them says how soon it fell
    outcome = judge(own.index, y, clean, attacked, size(x_adv - x, norm), names[by.cpu()], unknown)
    return Batch(outcome, x_adv.cpu().contiguous(), by.cpu().numpy(), seconds)


def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[Attack],
    *,
    draws: Draws,
    eot_draws: int,
) -> tuple[Tensor, Tensor, list[float]]:
    """What `cascade` is for a fixed model, for a randomised one: no example falls for good, so each meets every attack.

    The attacks climb the expectation over the randomness; of several, for each example the image is kept on which the
    fewest of `eot_draws` draws are right: a choice only, what it is worth is scored on fresh draws. The clean image is
    no candidate: chance would let it win, and overstate the model.
    """
    seconds = []
    x_adv, best, position = x.clone(), torch.full(y.shape, math.inf, device=x.device), torch.zeros_like(y)
    for number, attack in enumerate(attacks):
        start = time.perf_counter()
        found = attack(Expectation(model, eot_draws), x, y, draws=draws.restart(number))
        correct = score(model, found, y, eot_draws).correct if len(attacks) > 1 else best - 1
        better = (correct < best) | (number == 0)
        x_adv[better], best[better], position[better] = found[better], correct[better], number
        seconds.append(time.perf_counter() - start)
    return x_adv, position, seconds
