"""A running batch: examples side by side, each at a step of its own; who is done makes room for who comes next.

Rounds of a search one after the other end with few examples each, and an example in a small batch costs two to three
times as much. No row's bits depend on who shares its batch, nor so on when it takes its steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from robustlib.inference.oracle import Oracle
from robustlib.inference.steps import BallSearch, Phase, Rows, join

FEW = 64  # examples to look at at once: of more each costs hardly less


@dataclass(frozen=True)
class Begun:
    """A search within a radius before its first step, all of whose steps do the same. place: whose rows they are."""

    search: BallSearch[Any]
    run: Rows
    phases: Sequence[Phase]
    place: Tensor


class NoSteps(Oracle):
    """An oracle on which an attack ends before its first step: what it would have begun with is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[Any, Any, Sequence[Any]]] = []

    def take_steps(
        self, search: Any, run: Any, place: Tensor, phases: Sequence[Any], found: tuple[Tensor, ...]
    ) -> tuple[Any, Tensor]:
        self.kept.append((search, run, phases))
        return run, place


def begun(attack: Callable[..., Tensor], place: Tensor, x: Tensor, y: Tensor, **options: Any) -> Begun:
    """What an attack (model, x, y, *, ...) that is one run of equal steps begins with."""
    oracle = NoSteps()
    attack(oracle, x, y, **options)
    search, run, phases = oracle.kept[0]
    assert len(oracle.kept) == len(set(phases)) == 1 and isinstance(search, BallSearch) and run.rival is None
    return Begun(search, run, phases, place)


@dataclass(frozen=True)
class Running:
    """Examples somewhere in a run. place: whose they are, shape (B,).  left: steps that each still has, shape (B,)."""

    run: Rows
    place: Tensor
    left: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, chosen: Tensor) -> "Running":
        rows = chosen.nonzero().squeeze(1)
        return Running(self.run[rows], self.place[rows], self.left[rows])


def together(parts: Sequence[Running]) -> Running:
    """The examples one below the other. What a run lacks at its beginning, each step makes anew: it is left out."""
    parts = sorted(parts, key=lambda part: len(part.run.rows()))
    run = join([part.run for part in parts])
    return Running(run, torch.cat([part.place for part in parts]), torch.cat([part.left for part in parts]))


@dataclass(frozen=True)
class Ended:
    """Examples whose run is over. image: what it has found.  steps: that it took.  claimed: whose image the oracle, and
    who judges for it, says to be misclassified.  Shapes (B, ...).
    """

    place: Tensor
    image: Tensor
    steps: Tensor
    claimed: Tensor


class Between(Protocol):
    """What happens to an example between two runs."""

    @property
    def waiting(self) -> int:
        """How many examples `settle` would look at besides."""
        ...

    def begin(self, place: Tensor) -> list[Begun]:
        """Where the next runs of the examples of these places begin."""
        ...

    def settle(self, ended: Ended) -> Tensor:
        """Returns the places of those to be run again."""
        ...


class RunningBatch:
    """A batch on its way, see `run_out`. claimed: who is to be confirmed.  over: who has no steps left."""

    def __init__(self, oracle: Oracle, begins: Sequence[Begun]):
        first = begins[0]
        self.oracle, self.search, self.phase, self.steps = oracle, first.search, first.phases[0], len(first.phases)
        self.claimed: list[Running] = []
        self.over: list[Running] = []
        self.going = together([self.fresh(begun) for begun in begins])

    def fresh(self, begun: Begun) -> Running:
        return Running(begun.run, begun.place, torch.full_like(begun.place, self.steps))

    @property
    def held(self) -> int:
        """How many wait for somebody to look at them."""
        return sum(map(len, (*self.claimed, *self.over)))

    def step(self) -> None:
        """One step of all that are going. Who is claimed to be done, or has no steps left, waits."""
        going = self.going
        claims = self.search.ask(self.oracle, going.run, self.phase)
        if self.search.judge is not None and claims.any():
            self.claimed.append(going[claims])
            going = going[~claims]
        self.going = self.moved(going)

    def moved(self, some: Running) -> Running:
        """The rest of a step, for these. Returns who of them is still going."""
        if len(some) == 0:
            return some
        self.search.move(self.oracle, some.run, self.phase)
        some = Running(some.run, some.place, some.left - 1)
        if (last := some.left == 0).any():
            self.over.append(some[last])
            some = some[~last]
        return some

    def take_ended(self) -> Ended:
        """Those who wait and are done. A claim that is denied goes on with its run."""
        claimed, over = self.claimed, self.over
        self.claimed, self.over = [], []
        right = [self.confirmed(together(claimed))] if claimed else []
        parts = [(part, part.run.x_adv, 1) for part in right] + [(part, part.run.result, 0) for part in over]
        if not parts:
            none = self.going.place[:0]
            return Ended(none, self.going.run.x_adv[:0], none, none.bool())
        place = torch.cat([part.place for part, _, _ in parts])
        steps = torch.cat([self.steps - part.left + asked for part, _, asked in parts])
        claims = torch.cat([torch.full_like(part.place, asked) for part, _, asked in parts])
        return Ended(place, torch.cat([images for _, images, _ in parts]), steps, claims.bool())

    def confirmed(self, claimed: Running) -> Running:
        """Those whose claim is right. The others go on."""
        run = claimed.run
        done = self.oracle.is_done(run.x_adv, run.y, torch.ones_like(run.y, dtype=torch.bool))
        if not done.all():
            self.going = together([self.going, self.moved(claimed[~done])])
        return claimed[done]

    def add(self, begins: Sequence[Begun]) -> None:
        self.going = together([*(self.fresh(begun) for begun in begins), self.going])


def run_out(oracle: Oracle, between: Between, place: Tensor) -> None:
    """Run the examples of these places, and what comes after them, until there is nothing more.

    Who waits is looked at when they are many, or half as many as are still going, which they soon join (measured).
    """
    batch = RunningBatch(oracle, between.begin(place)) if len(place) else None
    while batch is not None and (waiting := batch.held + between.waiting) + len(batch.going):
        if waiting < min(FEW, max(len(batch.going) // 2, 1)):
            batch.step()
        elif len(again := between.settle(batch.take_ended())):
            batch.add(between.begin(again))
