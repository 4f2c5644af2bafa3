"""Turns of an attack, such as towards one class after the other, side by side as far as the device has room for them.

The outcome is that of one turn after the other, to the bit: of an example's turns the first that succeeds counts.
"""

import torch
from torch import Tensor, nn

from robustlib.inference.batched_model import Engine


def following(group: list[int], turns: int, model: nn.Module, n: int) -> list[int]:
    """The turns after this group: as many as fill the model's largest batch with n examples, but the first alone.

    The first turn is the one that most examples fall in, and what is run beside it would mostly be in vain.
    """
    begin = group[-1] + 1 if group else 0
    largest = model.sizes[-1] if isinstance(model, Engine) and model.sizes else 0
    count = max(1, largest // max(n, 1)) if begin else 1
    return list(range(begin, min(begin + count, turns)))


def repeat(rows: Tensor, group: list[int]) -> Tensor:
    """The rows once for each turn of the group, turn by turn."""
    return rows.repeat(len(group), *[1] * (rows.ndim - 1))


def still_needed(place: Tensor, fell: Tensor, rivals: Tensor) -> Tensor:
    """Which rows to go on with: those that have not fallen, and before which none of their rivals has just done so.

    place: of the rows in the batch that came, turn by turn.  rivals: which example each row of that batch is a turn of.
    """
    last = len(rivals)
    first = torch.full_like(rivals, last)
    first.scatter_reduce_(0, rivals[place[fell]], place[fell], "amin")
    return ~fell & (place < first[rivals[place]])
