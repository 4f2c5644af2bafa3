"""Losses that attacks maximise: one number an example, from logits, true classes and, for some, target classes."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]
LossName = Literal["ce", "margin", "dlr"]  # of LOSSES and TARGETED
TINY = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of raw logits, shape (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the true one, shape (B,): positive where misclassified.

    Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644. Does not saturate where the model is confident.
    """
    return best_wrong(logits, y) - pick(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, shape (B,): the margin over the gap between the first and the third logit.

    Croce and Hein 2020, https://arxiv.org/abs/2003.01690. Does not change when the logits are scaled. Three classes or
    more.
    """
    first, _, third = ranked(logits, 3)
    return margin(logits, y) / (first - third + TINY)


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Minus the cross-entropy of the target class, shape (B,)."""
    return -cross_entropy(logits, target)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Target logit minus the true one, shape (B,)."""
    return pick(logits, target) - pick(logits, y)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The targeted form of `dlr`, shape (B,), from the same paper. Four classes or more."""
    first, _, third, fourth = ranked(logits, 4)
    return targeted_margin(logits, y, target) / (first - (third + fourth) / 2 + TINY)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Which logits name another class than y, shape (B,)."""
    return logits.argmax(1) != y


def pick(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], float("-inf")).amax(1)


def ranked(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    """The `count` largest logits, from the largest down, each of shape (B,)."""
    if logits.shape[1] < count:
        raise ValueError(f"this loss needs {count} classes or more, got {logits.shape[1]}: use ce or margin")
    return logits.topk(count, dim=1).values.unbind(1)


def other_classes(logits: Tensor, y: Tensor) -> Tensor:
    """The classes but the true one, by falling logit, shape (B, classes - 1)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != y[:, None]].reshape(len(y), logits.shape[1] - 1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED: dict[str, Loss] = {"ce": targeted_cross_entropy, "margin": targeted_margin, "dlr": targeted_dlr}


def find_loss(name: str, known: dict[str, Loss] = LOSSES) -> Loss:
    if name not in known:
        raise ValueError(f"unknown loss {name!r}, expected one of: {', '.join(known)}")
    return known[name]
