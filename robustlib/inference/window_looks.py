"""Looks at what a window of steps has found, and the examples for which it has to be taken again.

Within a window nobody asks the judge. A search within a radius keeps its first and its last claim, one for the nearest
image the nearest claimed. At the window's end the judge is asked about these; so an example is done exactly where it
would have been, had the judge been asked at each step. Where that cannot be told, and where half precision ended, the
example takes the window's steps again from its beginning, eagerly and with the judge at every step. One thing may come
out otherwise: a search whose steps depend on the nearest image (FMN) goes by claims that the judge has not yet seen, of
which one is asked about only if no nearer one came in the same window.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustlib.inference.fixed_oracle import FixedOracle
from robustlib.inference.step_blocks import Block
from robustlib.inference.steps import BallSearch, Nearest, NearestSearch, Phase, Rows, nearer_ones, take
from robustlib.norms import per_example


@dataclass
class Looked:
    """What a look found, each shape (rows,). done: whose run is over, with what is `found` of it.  again: whose window
    has to be taken again.
    """

    done: Tensor
    again: Tensor
    found: tuple[Tensor, ...]


@dataclass(frozen=True)
class BallWindow:
    """Of a search within a radius."""

    search: BallSearch[Any]

    def marks(self, run: Rows, size: int) -> dict[str, Tensor]:
        """What a window notes of its rows: zero at its beginning. first0, last0, ...: what is kept of claims."""
        marks = {"beyond": run.y.new_zeros(size, dtype=torch.bool)}
        if self.search.judge is not None:
            marks["claims"] = run.y.new_zeros(size)
            for number, rows in enumerate(self.search.claimed_by(run)):
                marks |= {f"{which}{number}": rows.new_zeros((size, *rows.shape[1:])) for which in ("first", "last")}
        return marks

    def step(self, oracle: FixedOracle, run: Rows, marks: dict[str, Tensor], phase: Phase) -> None:
        claimed = self.search.ask(oracle, run, phase)
        if self.search.judge is not None:
            first = claimed & (marks["claims"] == 0)
            for number, rows in enumerate(self.search.claimed_by(run)):
                for which, chosen in ((f"first{number}", first), (f"last{number}", claimed)):
                    marks[which] = torch.where(per_example(chosen, rows), rows, marks[which])
            marks["claims"] = marks["claims"] + claimed
        self.search.move(oracle, run, phase)

    def look(self, block: Block) -> Looked | None:
        """None where there is nothing to do."""
        live, marks, judge = block.place >= 0, block.marks, self.search.judge
        again = live & marks["beyond"]
        claims = torch.zeros_like(block.place) if judge is None else marks["claims"]
        claimed = live & (claims > 0) & ~again
        if not (claimed | again).any():
            return None
        found, done = self.search.claimed_by(block.state), torch.zeros_like(live)
        if judge is not None and len(rows := claimed.nonzero().squeeze(1)):
            found = tuple(marks[f"first{number}"] for number in range(len(found)))
            done[rows] = self.agreed(found[0][rows], block.state.y[rows])
            # The last one is asked about where the first was denied: a step that is taken at each claim finds it too.
            if len(rows := (claimed & ~done & (claims > 1)).nonzero().squeeze(1)):
                done[rows] = self.agreed(marks["last0"][rows], block.state.y[rows])
                found = tuple(part.clone() for part in found)
                for number, part in enumerate(found):
                    part[rows] = marks[f"last{number}"][rows]
        return Looked(done, again | (claimed & ~done & (claims > 2)), found)

    def agreed(self, images: Tensor, y: Tensor) -> Tensor:
        assert self.search.judge is not None
        return self.search.judge(images, y, torch.ones_like(y, dtype=torch.bool))


@dataclass(frozen=True)
class NearestWindow:
    """Of a search for the nearest misclassified image."""

    search: NearestSearch[Any]

    def marks(self, run: Rows, size: int) -> dict[str, Tensor]:
        """As for `BallWindow`. over: rows that are done, whose nearest image no later step may change."""
        return {name: run.y.new_zeros(size, dtype=torch.bool) for name in ("beyond", "claimed", "over")}

    def step(self, oracle: FixedOracle, run: Nearest, marks: dict[str, Tensor], phase: Phase) -> None:
        how_far, going = self.search.ask(oracle, run, phase), ~marks["over"]
        nearer, claimed = nearer_ones(run, how_far)
        take(run, how_far, nearer & going)
        marks["claimed"] = marks["claimed"] | (claimed & going)
        if (done := self.search.move(oracle, run, phase)) is not None:
            marks["over"] = marks["over"] | done

    def look(self, block: Block) -> Looked | None:
        """None where there is nothing to do."""
        live, state = block.place >= 0, block.state
        assert isinstance(state, Nearest)
        again = live & block.marks["beyond"]
        claimed, over = (live & block.marks[name] & ~again for name in ("claimed", "over"))
        if not (claimed | over | again).any():
            return None
        if len(rows := claimed.nonzero().squeeze(1)):
            right = self.search.judge(state.best[rows], state.y[rows], torch.ones_like(rows, dtype=torch.bool))
            again[rows] = ~right
        return Looked(over & ~again, again, (state.best, state.distance))
