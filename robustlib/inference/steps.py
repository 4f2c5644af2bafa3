"""Iterative attacks as steps over tensors of fixed shape, and what runs them and leaves out the examples that are done.

A step is two functions of an oracle, a state and a phase. The state is a dataclass whose tensors have a row for each
example; the phase is what differs from step to step. `ask` asks the oracle about the state's `x_adv` and returns what
it says of each row; `move` goes on from there. Both put new tensors in place of the state's. Neither changes the number
of rows, chooses rows by a mask, writes into a tensor of the state or makes Python look at a number, so that a step can
be recorded as a CUDA graph (`recorded_steps.py`). What is done is left out here, between the steps.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from robustlib.inference.oracle import Oracle
from robustlib.norms import either


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
        # By places: rows of images then move whole, which takes a third of the time.
        places = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen
        return self.with_rows({name: rows.index_select(0, places) for name, rows in self.rows().items()})

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


@dataclass(frozen=True)
class Phase:
    """What a step is besides its state: all that may differ between the steps of a run.

    kind: steps of one kind do the same.  numbers: what differs between them: floats; tensors without dimensions in a
    step that is recorded, so that no number is frozen into it.
    """

    kind: Hashable = None
    numbers: tuple[Any, ...] = ()


State = TypeVar("State", bound=Rows)
NearestState = TypeVar("NearestState", bound=Nearest)
Judge = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, classes, which are claimed -> of which it is so


def join(states: Sequence[State]) -> State:
    """The states one below the other; the first has what is the same for all."""
    parts = [state.rows() for state in states]
    return states[0].with_rows({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@dataclass(frozen=True)
class BallSearch(Generic[State]):
    """Steps within a radius. An example is done with at its first misclassified image. See `search_ball`."""

    ask: Callable[[Oracle, State, Phase], Tensor]
    move: Callable[[Oracle, State, Phase], None]
    judge: Judge | None

    def claimed_by(self, run: State) -> tuple[Tensor, ...]:
        """What is kept of an example that is claimed to be misclassified."""
        return (run.x_adv,)

    def found_by(self, run: State) -> tuple[Tensor, ...]:
        """What is kept of one that was not done in the end."""
        return (run.result,)

    def walk(
        self, oracle: Oracle, run: State, place: Tensor, phases: Sequence[Phase], found: tuple[Tensor, ...]
    ) -> tuple[State, Tensor]:
        """The steps, each with a look at what is done. found: is filled in for those.  place: of the rows in it.

        Returns what is not done, and its places.
        """
        for phase in phases:
            claimed = self.ask(oracle, run, phase)
            if self.judge is not None and (done := self.judge(run.x_adv, run.y, claimed)).any():
                found[0][place[done]] = run.x_adv[done]
                going = still_needed(place, done, run.rival)
                run, place = run[going], place[going]
                if len(place) == 0:
                    break
            self.move(oracle, run, phase)
        return run, place


@dataclass(frozen=True)
class NearestSearch(Generic[NearestState]):
    """Steps towards the nearest misclassified image. See `search_nearest`."""

    ask: Callable[[Oracle, NearestState, Phase], Tensor]
    move: Callable[[Oracle, NearestState, Phase], Tensor | None]
    judge: Judge

    def found_by(self, run: NearestState) -> tuple[Tensor, ...]:
        return run.best, run.distance

    def walk(
        self, oracle: Oracle, run: NearestState, place: Tensor, phases: Sequence[Phase], found: tuple[Tensor, ...]
    ) -> tuple[NearestState, Tensor]:
        """As for `BallSearch`."""
        for phase in phases:
            if len(place) == 0:
                break
            how_far = self.ask(oracle, run, phase)
            nearer, claimed = nearer_ones(run, how_far)
            take(run, how_far, nearer & (self.judge(run.x_adv, run.y, claimed) | ~claimed))
            if (done := self.move(oracle, run, phase)) is not None and done.any():
                for whole, rows in zip(found, self.found_by(run), strict=True):
                    whole[place[done]] = rows[done]
                going = still_needed(place, done, run.rival)
                run, place = run[going], place[going]
        return run, place


def nearer_ones(run: Nearest, how_far: Tensor) -> tuple[Tensor, Tensor]:
    """Which images are nearer than the nearest so far, and which of them need be confirmed."""
    nearer = how_far < run.distance
    return nearer, nearer if run.reach is None else nearer & (how_far <= run.reach)


def take(run: Nearest, how_far: Tensor, nearer: Tensor) -> None:
    """These images are the nearest ones now."""
    run.nearer = nearer
    run.distance = torch.where(nearer, how_far, run.distance)
    run.best = either(nearer, run.x_adv, run.best)


def search_ball(
    oracle: Oracle,
    run: State,
    ask: Callable[[Oracle, State, Phase], Tensor],
    move: Callable[[Oracle, State, Phase], None],
    phases: Sequence[Phase],
    judge: Judge | None,
) -> Tensor:
    """Steps within a radius. An example is done with at its first misclassified image; else it gives its `result`.

    ask: returns which images the model claims to misclassify, shape (B,).  phases: of the steps, in their order.
    judge: which claims are right, as `Oracle.is_done` says; None goes on with all examples to the end.
    """
    return whole_search(oracle, BallSearch(ask, move, judge), run, phases, (run.x_adv.clone(),))[0]


def search_nearest(
    oracle: Oracle,
    run: NearestState,
    ask: Callable[[Oracle, NearestState, Phase], Tensor],
    move: Callable[[Oracle, NearestState, Phase], Tensor | None],
    phases: Sequence[Phase],
) -> tuple[Tensor, Tensor]:
    """Steps towards the nearest misclassified image: that image and its distance, infinite where none was found.

    ask: returns how far the images are from x, shape (B,), infinitely far those that the model does not misclassify.
    move: returns which examples are done, or None.  phases: of the steps, in their order.  `Oracle.is_adversarial` says
    which images are misclassified for sure.
    """
    search = NearestSearch(ask, move, oracle.is_adversarial)
    best, distance = whole_search(oracle, search, run, phases, (run.best.clone(), run.distance.clone()))
    return best, distance


def whole_search(
    oracle: Oracle, search: Any, run: Rows, phases: Sequence[Phase], found: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The steps as the oracle takes them, and what was found of every example."""
    run, place = oracle.take_steps(search, run, torch.arange(len(run.x), device=run.x.device), phases, found)
    for whole, rows in zip(found, search.found_by(run), strict=True):
        whole[place] = rows
    return found


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
