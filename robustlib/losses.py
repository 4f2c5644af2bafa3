"""What an attack climbs: one number an example, from logits, true classes and, for some, target classes."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.calls import ask
from robustlib.engine import Engine, differentiate
from robustlib.models.layers import Expectation

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


def pick(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def best_wrong(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], float("-inf")).amax(1)


def ranked(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    """The `count` largest logits, from the largest down, each of shape (B,)."""
    if logits.shape[1] < count:
        raise ValueError(f"this loss needs {count} classes or more, got {logits.shape[1]}: use ce or margin")
    return logits.topk(count, dim=1).values.unbind(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED: dict[str, Loss] = {"ce": targeted_cross_entropy, "margin": targeted_margin, "dlr": targeted_dlr}


def find_loss(name: str, known: dict[str, Loss] = LOSSES) -> Loss:
    if name not in known:
        raise ValueError(f"unknown loss {name!r}, expected one of: {', '.join(known)}")
    return known[name]


def climb(model: nn.Module, x: Tensor, loss: Loss, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), each example's own loss (B,) and its gradient by x, for `loss(logits, *rows)`."""
    logits, values, gradients = differentiate(model, x, lambda z, *chosen: loss(z, *chosen)[:, None], *rows)
    return logits, values[:, 0], gradients[:, 0]


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient of each example's own loss with respect to x, shaped like x."""
    return climb(model, x, loss, y)[2]


def classes_of(logits: Tensor) -> Tensor:
    """The class that each row of logits names, shape (B,). Raises ValueError for NaN: what a model says so is unknown,
    and must count neither as right nor as broken.
    """
    if (unknown := logits.isnan().any(1)).any():
        raise ValueError(f"the model gives NaN logits for {int(unknown.sum())} of {len(logits)} images")
    return logits.argmax(1)


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Which logits misclassify, shape (B,)."""
    return logits.argmax(1) != y


@torch.no_grad()
def surely_right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images `model`, and whatever it is a copy of, classifies as y, shape (B,)."""
    logits = ask(model, x)
    if not isinstance(model, Engine) or model.drift == 0:
        return ~wrong(logits, y)
    return margin(logits, y) < -model.drift  # False for NaN


@torch.no_grad()
def confirmed(model: nn.Module, x: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
    """Which of the images that `model` is said to misclassify are so, shape (B,).

    A search copy's word needs that of its judge, by more than the judge may differ from the model that all this is
    about: so that an attack goes on where only the copy is fooled.
    """
    if not isinstance(model, Engine) or model.judge is None or not claimed.any():
        return claimed
    rows = claimed.nonzero().squeeze(1)
    agreed = claimed.clone()
    logits = model.judge(x[rows])
    agreed[rows] = wrong(logits, y[rows]) & (margin(logits, y[rows]) >= model.judge_drift)
    return agreed


@torch.no_grad()
def starts(model: nn.Module, x: Tensor, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The images that are right as they are, by their places, with what to attack them on.

    Those that a copy in half precision alone takes for broken are attacked on its finer copy: an attack that looks for
    the boundary from its true side would take them for done.
    """
    claimed = wrong(ask(model, x), y)
    found = [(model, (~claimed).nonzero().squeeze(1))]
    if isinstance(model, Engine) and model.finer:
        found.append((model.finer[0], (claimed & ~confirmed(model, x, y, claimed)).nonzero().squeeze(1)))
    return [(net, rows) for net, rows in found if len(rows)]


def settled(model: nn.Module, x: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
    """Which of the images that `model` is said to misclassify an attack within a radius is done with, shape (B,).

    None of a randomised model's: where the mean of its draws is only just wrong, half of the draws may be right, and
    every further step leaves fewer of them so.
    """
    return torch.zeros_like(claimed) if isinstance(model, Expectation) else confirmed(model, x, y, claimed)
