"""Turns of an attack, such as towards one class after the other, side by side as far as a batch has room for them.

The outcome is that of one turn after the other, to the bit: of an example's turns the first that succeeds counts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustlib.inference.steps import State, join


class Turned(NamedTuple):
    """What turns found, a row for each. done: it succeeded.  score: of those that did not, the highest is kept."""

    x_adv: Tensor
    done: Tensor
    score: Tensor


def in_turn(
    x: Tensor, turns: int, batch: int, begin: Callable[[Tensor, int], State], run: Callable[[State], Turned]
) -> Turned:
    """Every example's turns until one of them succeeds.

    batch: rows that go well into one pass.  begin: the state in which a turn begins, for the examples at these places.
    run: what comes of states, of several turns below each other.
    """
    best = x.clone()
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    score = torch.full_like(x[:, 0, 0, 0], -torch.inf)
    live, first = torch.arange(len(x), device=x.device), 0
    while len(live) and first < turns:
        # The first turn is the one that most examples fall in, and what is run beside it would mostly be in vain.
        count = min(max(1, batch // len(live)), turns - first) if first else 1
        states = join([begin(live, turn) for turn in range(first, first + count)])
        states.rival = torch.arange(len(live), device=x.device).repeat(count)
        first += count
        found = run(states)
        fell, scores = found.done.reshape(count, -1), found.score.reshape(count, -1)
        turn = torch.where(fell.any(0), fell.int().argmax(0), scores.argmax(0))
        row = turn * len(live) + torch.arange(len(live), device=x.device)
        better = fell.any(0) | (found.score[row] > score[live])
        taken, row = live[better], row[better]
        best[taken], done[taken] = found.x_adv[row], found.done[row]
        score[taken] = found.score[row].to(score.dtype)  # a model may answer in half precision
        live = live[~fell.any(0)]
    return Turned(best, done, score)
