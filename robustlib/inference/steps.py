"""Iterative attacks as steps over tensors of fixed shape, and what runs them and leaves out the examples that are done.

A step is two functions of a state, a dataclass whose tensors have a row for each example. `ask` calls the model at the
state's `x_adv` and returns what it says of each row; `move` goes on from there. Neither changes the number of rows,
chooses rows by a mask or makes Python look at a number, so that a step can be recorded as a CUDA graph. What is done is
left out here, between the steps.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

import torch
from torch import Tensor

from robustlib.norms import per_example


@dataclass(kw_only=True)
class Rows:
    """Where each example's run is, a row each; what is no tensor is the same for all.

    x_adv: the image that the model is asked about next.  rival: of rows with the same number the first that is done
    ends those after it.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor
    rival: Tensor | None = None

    def __getitem__(self, chosen: Tensor) -> Self:
        return self.with_rows({name: rows[chosen] for name, rows in self.rows().items()})

    def rows(self) -> dict[str, Tensor]:
        """What has a row for each example, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def with_rows(self, rows: dict[str, Tensor]) -> Self:
        other = copy.copy(self)
        vars(other).update(rows)
        return other

    @property
    def result(self) -> Tensor:
        """The images of those that were not done."""
        return self.x_adv


@dataclass(kw_only=True)
class Nearest(Rows):
    """Where each example's search for the nearest misclassified image is.

    best, distance: the nearest so far, infinitely far where there is none.  nearer: whether that is the image that the
    model was asked about last.  reach: an image beyond it is only a place to go on from, which nobody need confirm.
    """

    reach: Tensor | None = None
    best: Tensor = field(init=False)
    distance: Tensor = field(init=False)
    nearer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.best, self.distance = self.x, torch.full_like(self.x[:, 0, 0, 0], torch.inf)
        self.nearer = torch.zeros_like(self.y, dtype=torch.bool)


State = TypeVar("State", bound=Rows)
NearestState = TypeVar("NearestState", bound=Nearest)
Judge = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, classes, which are claimed -> of which it is so


def join(states: Sequence[State]) -> State:
    """The states one below the other; the first has what is the same for all."""
    parts = [state.rows() for state in states]
    return states[0].with_rows({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def search_ball(
    run: State,
    ask: Callable[[State, int], Tensor],
    move: Callable[[State, int], None],
    asks: int,
    judge: Judge | None,
) -> Tensor:
    """Steps within a radius. An example is done with at its first misclassified image; else it gives its `result`.

    ask: returns which images the model claims to misclassify, shape (B,).  asks: how often; a move follows each.
    judge: which claims are right, as `Oracle.is_done` says; None goes on with all examples to the end.
    """
    found, place = run.x_adv.clone(), torch.arange(len(run.x), device=run.x.device)
    for number in range(asks):
        claimed = ask(run, number)
        if judge is not None and (done := judge(run.x_adv, run.y, claimed)).any():
            found[place[done]] = run.x_adv[done]
            going = still_needed(place, done, run.rival)
            run, place = run[going], place[going]
            if len(place) == 0:
                return found
        move(run, number)
    found[place] = run.result
    return found


def search_nearest(
    run: NearestState,
    ask: Callable[[NearestState, int], Tensor],
    move: Callable[[NearestState, int], Tensor | None],
    asks: int,
    judge: Judge,
) -> tuple[Tensor, Tensor]:
    """Steps towards the nearest misclassified image: that image and its distance, infinite where none was found.

    ask: returns how far the images are from x, shape (B,), infinitely far those that the model does not misclassify.
    move: returns which examples are done, or None.  judge: which claims are right, as `Oracle.is_adversarial` says.
    """
    best, distance = run.best.clone(), run.distance.clone()
    place = torch.arange(len(run.x), device=run.x.device)
    for number in range(asks):
        if len(place) == 0:
            break
        how_far = ask(run, number)
        nearer = how_far < run.distance
        claimed = nearer if run.reach is None else nearer & (how_far <= run.reach)
        run.nearer = nearer & (judge(run.x_adv, run.y, claimed) | ~claimed)
        run.distance = torch.where(run.nearer, how_far, run.distance)
        run.best = torch.where(per_example(run.nearer, run.x), run.x_adv, run.best)
        if (done := move(run, number)) is not None and done.any():
            best[place[done]], distance[place[done]] = run.best[done], run.distance[done]
            going = still_needed(place, done, run.rival)
            run, place = run[going], place[going]
    best[place], distance[place] = run.best, run.distance
    return best, distance


def still_needed(place: Tensor, done: Tensor, rival: Tensor | None) -> Tensor:
    """Which rows to go on with: those that are not done, and before which none of their rivals has just been so.

    place: of the rows in the batch that came.
    """
    if rival is None:
        return ~done
    last = torch.iinfo(place.dtype).max
    first = torch.full((int(rival.max()) + 1,), last, device=place.device)
    first.scatter_reduce_(0, rival[done], place[done], "amin")
    return ~done & (place < first[rival])
