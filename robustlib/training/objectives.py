"""What training descends: functions (model, x, y, *, draws, ...) -> loss."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.draws import Draws
from robustlib.modes import evaluating


def standard(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
    """Cross-entropy of the clean images, averaged over the batch."""
    return F.cross_entropy(model(x), y)


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, attack: Callable[..., Tensor], **options: Any
) -> Tensor:
    """Cross-entropy of attacked images alone: the outer minimum of Madry et al. 2018, https://arxiv.org/abs/1706.06083.

    The attack sees the model in eval mode, so that its many passes do not move BatchNorm's statistics; the loss is
    taken in training mode.
    """
    with evaluating(model):
        x_adv = attack(model, x, y, draws=draws, **options)
    return F.cross_entropy(model(x_adv), y)
