"""Confirmation that an image is misclassified, if only a copy of the model was asked."""

import torch
from torch import Tensor, nn

from robustlib.inference.batched_model import Engine
from robustlib.inference.expectation import Expectation
from robustlib.losses import margin
from robustlib.model_calls import ask


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
