"""Recorded steps: an attack's whole step as one CUDA graph, and a look at what is done every few steps.

Rows lie in blocks of fixed sizes. A block's step, with its passes, gradients, projection and what it found, is recorded
once for each kind and played from then on; between looks the host asks nothing. At a look the judge is asked, what is
done leaves, and the rest moves to a smaller block where one holds it. What cannot be recorded runs eagerly, and the
replica's mode says so.

A recording is kept for the next run that takes the same steps (`step_keys.py`) on rows of the same shapes, such as the
next batch of an evaluation; those used longest ago go where they take too much memory.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustlib.inference.fixed_oracle import FixedOracle
from robustlib.inference.oracle import Oracle
from robustlib.inference.step_blocks import Block, blank
from robustlib.inference.step_keys import NotPlain, key_of
from robustlib.inference.steps import BallSearch, Phase, Rows, join, still_needed
from robustlib.inference.window_looks import BallWindow, NearestWindow
from robustlib.memory import free, out_of_memory

SHORT = 6  # a run of fewer steps records nothing
# A look costs a wait for the device, and a step that is taken in vain for those who are done. Most fall in the first
# steps: so the first windows are as long as what went before them, and the others this long.
LONGEST = 8
MOVE = 4  # steps left, from which on a smaller block is worth its copies
KEPT_BYTES = 4 * 2**30  # of the buffers of all blocks that are kept


@dataclass
class Recordings:
    """What has been recorded of a replica's steps. refused: why nothing more is.  played: steps since `forget`."""

    refused: str = ""
    played: int = 0
    blocks: OrderedDict[Hashable, Block] = field(default_factory=OrderedDict)
    pool: Any = None

    def words(self, *, recorded: bool) -> str:
        """For the mode. recorded: whether what it is about took steps from recordings."""
        if self.refused:
            return f", steps not recorded: {self.refused}"
        return ", recorded steps" if recorded else ""

    def forget(self) -> None:
        """What was played so far is told no more."""
        self.played = 0

    def refuse(self, error: Exception) -> None:
        """Record nothing more, and give the memory back."""
        self.refused = "no memory for it" if out_of_memory(error) else " ".join(f"{error}".split())[:200]
        self.refused = self.refused or type(error).__name__
        self.blocks.clear()
        self.pool = None

    def drop(self, key: Hashable) -> None:
        """Let go of the blocks of a run that no other can go on with."""
        for name in [name for name in self.blocks if name[0] is key]:  # pyright: ignore[reportIndexIssue]
            del self.blocks[name]
        if not self.blocks:
            self.pool = None

    def forget_blocks(self, beyond: int) -> None:
        """Give back blocks of more examples, and the recordings of all: their pool is given back as a whole."""
        if any(len(block.place) > beyond for block in self.blocks.values()):
            self.blocks.clear()
            self.pool = None

    def keep(self, key: Hashable, make: Callable[[Any], Block], device: torch.device) -> Block:
        """The block of this key, made where there is none."""
        if key not in self.blocks:
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
            self.blocks[key] = make(self.pool)
        self.blocks.move_to_end(key)
        while len(self.blocks) > 1 and sum(block.nbytes for block in self.blocks.values()) > KEPT_BYTES:
            self.blocks.popitem(last=False)
        return self.blocks[key]


@dataclass
class Recorder:
    """A run of a search over blocks. oracle: the replica that is searched on.  fixed: makes what a step of so many rows
    asks.  found: see `BallSearch.walk`.
    """

    oracle: Oracle
    fixed: Callable[[int], FixedOracle]
    recordings: Recordings
    sizes: tuple[int, ...]
    search: Any
    phases: Sequence[Phase]
    found: tuple[Tensor, ...]

    def walk(self, run: Rows, place: Tensor) -> tuple[Rows, Tensor]:
        """As `BallSearch.walk`. The first step is taken eagerly: all fields of the state are there after it."""
        run, place = self.search.walk(self.oracle, run, place, self.phases[:1], self.found)
        if len(place) == 0:
            return run, place
        window = BallWindow(self.search) if isinstance(self.search, BallSearch) else NearestWindow(self.search)
        key, again = self.key(run), self.same_from_here()
        shares = torch.arange(len(place), device=place.device).split(self.sizes[-1])
        parts = [self.through_blocks(window, key, again, run[rows], place[rows]) for rows in shares]
        if not isinstance(key, tuple):
            self.recordings.drop(key)
        return join([part for part, _ in parts]), torch.cat([places for _, places in parts])

    def key(self, run: Rows) -> Hashable:
        """Equal for runs that take the same steps on rows of the same shapes; one of its own where that is unknown."""
        rows = run.rows()
        constants = {name: value for name, value in vars(run).items() if name not in rows}
        shapes = tuple((name, value.shape[1:], value.dtype, value.device) for name, value in rows.items())
        try:
            steps = key_of([self.search.ask, self.search.move, constants])
        except NotPlain:
            return object()
        return (type(self.search), self.search.judge is None, type(run), steps, shapes)

    def same_from_here(self) -> list[int]:
        """Of each step, how many of its kind there are from it on."""
        seen, counts = Counter[Hashable](), []
        for phase in reversed(self.phases):
            seen[phase.kind] += 1
            counts.append(seen[phase.kind])
        return counts[::-1]

    def through_blocks(
        self, window: Any, key: Hashable, again: list[int], run: Rows, place: Tensor
    ) -> tuple[Rows, Tensor]:
        """These rows through all steps but the first."""
        at, block, began = 1, None, False
        while at < len(self.phases) and len(place):
            until = at + min(at, LONGEST, len(self.phases) - at)
            try:
                block = self.fitting(window, key, block, run, place, len(self.phases) - at)
                block.begin_window()
                began = True
                for number in range(at, until):
                    self.recordings.played += block.take(window.step, self.phases[number], again[number])
            except Exception as error:  # a user's model may do what cannot be recorded; eagerly it raises what is wrong
                self.recordings.refuse(error)
            # Out of the block: the error no longer holds what was to be freed, nor is it the context of later ones.
            if block is None or self.recordings.refused:
                free()
                if block is not None:
                    run, place = block.rows_of(block.before if began else block.state)
                return self.search.walk(self.oracle, run, place, self.phases[at:], self.found)
            if self.look(window, block, self.phases[at:until]):
                run, place = block.rows_of(block.state)
            at, began = until, False
        return (run, place) if block is None else block.rows_of(block.state)

    def fitting(self, window: Any, key: Hashable, block: Block | None, run: Rows, place: Tensor, steps: int) -> Block:
        """The block to go on in: where steps enough are left, the smallest that holds these rows. They are read only
        where they are fewer than before.
        """
        size = next(size for size in self.sizes if size >= len(place))
        if block is not None and (len(block.place) == size or steps < MOVE):
            return block

        def make(pool: Any) -> Block:
            empty = place.new_full((size,), -1)
            return Block(blank(run, size), blank(run, size), empty, window.marks(run, size), self.fixed, pool)

        fitting = self.recordings.keep((key, size), make, place.device)
        fitting.load(run, place)
        return fitting

    def look(self, window: Any, block: Block, phases: Sequence[Phase]) -> bool:
        """Keep what the window has found, and let go of what is done. Returns whether there was such."""
        if (looked := window.look(block)) is None:
            return False
        done, rows = looked.done, looked.done.nonzero().squeeze(1)
        for whole, part in zip(self.found, looked.found, strict=True):
            whole[block.place[rows]] = part[rows]
        if len(rows := looked.again.nonzero().squeeze(1)):
            done[rows] = self.take_again(block, rows, phases)
        rows = (block.place >= 0).nonzero().squeeze(1)
        rival = None if block.state.rival is None else block.state.rival[rows]
        block.place[rows[~still_needed(block.place[rows], done[rows], rival)]] = -1
        return True

    def take_again(self, block: Block, rows: Tensor, phases: Sequence[Phase]) -> Tensor:
        """The window's steps eagerly for these rows, from where they were before. Returns which of them are done."""
        run = block.before[rows]
        run.rival = None
        found = tuple(part.clone() for part in self.search.found_by(run))
        run, left = self.search.walk(self.oracle, run, torch.arange(len(rows), device=rows.device), phases, found)
        done = torch.ones_like(rows, dtype=torch.bool)
        done[left] = False
        for whole, part in zip(self.found, found, strict=True):
            whole[block.place[rows[done]]] = part[done]
        buffers = block.state.rows()
        for name, part in run.rows().items():
            buffers[name][rows[left]] = part
        return done
