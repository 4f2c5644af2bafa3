"""Training objectives: functions (model, x, y, *, draws, ...) -> loss."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.types import Stage, as_stage
from robustlib.inference.model_modes import evaluating
from robustlib.input_checks import unchecked
from robustlib.model_calls import ask
from robustlib.rng import Draws

OF_TRAINING = frozenset({"draws", "stop_at_success", "start"})  # parameters of an attack that training decides
Search = Callable[[], nn.Module]


def standard(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, search: Search | None = None) -> Tensor:
    """Cross-entropy of the clean images, averaged over the batch."""
    return F.cross_entropy(ask(model, x), y)


def adversarial(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    draws: Draws,
    attack: Callable[..., Tensor],
    search: Search | None = None,
    **options: Any,
) -> Tensor:
    """Cross-entropy of attacked images alone: the outer minimum of Madry et al. 2018, https://arxiv.org/abs/1706.06083.

    The attack sees the model in eval mode, so that its many passes do not move BatchNorm's statistics; the loss is
    taken in training mode.  search: gives a copy of the model as it is now for the attack to work on; the model itself
    where it is None. The attack goes unchecked, which would wait for the device at every step.
    """
    attack = unchecked(attack)
    with evaluating(model):
        if search is None:
            x_adv = attack(model, x, y, draws=draws, **options)
        else:
            with torch.autocast(x.device.type, enabled=False):  # the copy has its own precision
                x_adv = attack(search(), x, y, draws=draws, **options)
    return F.cross_entropy(ask(model, x_adv), y)


def attack_of(objective: Callable[..., Tensor]) -> Stage | None:
    """The attack that an objective trains on; None of one that attacks nothing."""
    attack = getattr(objective, "keywords", {}).get("attack")
    return None if attack is None else as_stage(attack)
