"""Square: random search over squares, by the logits alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.square_patterns import corners, propose_bump, signs, tiles
from robustlib.inference.oracle import Margins, Oracle, as_oracle
from robustlib.inference.steps import BallSearch, Phase, Rows
from robustlib.input_checks import checked
from robustlib.norms import Radius, beside, per_example
from robustlib.rng import Draws, default_draws

# After how many queries the share of the image that a square covers is halved (again).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
AHEAD = 8  # queries of an example that are tried at once where few examples are left to fill a batch


@dataclass(kw_only=True)
class Run(Rows):
    """Where each example's search is. query: the number of the next one.  index, seed: of its draws."""

    eps: Tensor
    value: Tensor  # the margin: above 0 where misclassified
    rough: Tensor  # see `Margins`
    query: Tensor
    index: Tensor
    seed: int


@dataclass(frozen=True)
class QuerySearch(BallSearch[Run]):
    """Queries up to the last with a size of square, both told by the phase. Eagerly several of an example at once."""

    norm: Norm

    def claimed_by(self, run: Run) -> tuple[Tensor, ...]:
        return run.x_adv, run.query

    def found_by(self, run: Run) -> tuple[Tensor, ...]:
        return run.x_adv, run.query

    def walk(
        self, oracle: Oracle, run: Run, place: Tensor, phases: Sequence[Phase], found: tuple[Tensor, ...]
    ) -> tuple[Run, Tensor]:
        for phase in phases:
            side, last = phase.kind  # pyright: ignore[reportGeneralTypeIssues]
            going = (run.query <= last).nonzero().squeeze(1)
            if len(going) == 0:
                break
            fell = advance(oracle, run, going, side, self.norm, last)
            if fell.any():
                for whole, rows in zip(found, self.claimed_by(run), strict=True):
                    whole[place[fell]] = rows[fell]
                run, place = run[~fell], place[~fell]
        return run, place


@checked
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "Linf",
    eps: Radius = 8 / 255,
    queries: int = 5000,
    share: float = 0.8,
    draws: Draws | None = None,
    spent: Tensor | None = None,
) -> Tensor:
    """Square attack, Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049; L1: https://arxiv.org/abs/2103.01208.

    x: images in [0, 1], shape (B, C, H, W).  y: true classes, shape (B,).  eps: in units of x, perhaps of each example
    its own.
    queries: candidates an image, each a forward pass unless it changes nothing.
    share: of the image that the first squares cover; it is halved after 10, 50, 200, 500, 1000, 2000, ... queries.
    An image is done with as soon as it is misclassified.  spent: shape (B,), filled with each image's candidates.
    Returns x_adv, shaped like x, in the box and the eps-ball.
    """
    oracle, draws = as_oracle(model), default_draws(x, draws)
    eps = eps if isinstance(eps, Tensor) else torch.full_like(y, eps, dtype=torch.float64)
    x_adv = stripes(x, eps, draws) if norm == "Linf" else tiles(x, eps, norm, draws)
    value, rough = oracle.margins(x_adv, y)
    run = Run(
        x=x, y=y, x_adv=x_adv, eps=eps, value=value, rough=rough, query=torch.ones_like(y), index=draws.index,
        seed=draws.seed,
    )  # fmt: skip
    found = (x_adv.clone(), torch.ones_like(y))
    place = (~oracle.is_done(x_adv, y, value > 0)).nonzero().squeeze(1)
    search, run = QuerySearch(partial(one_query, norm=norm), stay, oracle.is_done, norm), run[place]
    for first, last in spans(queries):
        phase = Phase((side_length(x, share, first, norm), last))
        while len(place) and (left := last + 1 - int(run.query.min())) > 0:
            run, place = oracle.take_steps(search, run, place, [phase] * left, found)
    for whole, rows in zip(found, search.found_by(run), strict=True):
        whole[place] = rows
    if spent is not None:
        spent.copy_(found[1])
    return found[0]


def spans(queries: int) -> list[tuple[int, int]]:
    """The first and the last of the queries, from 1, that share a size of square; the first guess counts as one."""
    ends = [end for end in HALVINGS if end < queries - 1] + [queries - 1]
    return [span for span in zip([1, *(end + 1 for end in ends)], ends, strict=False) if span[0] <= span[1]]


def proposed(run: Run, side: int, norm: Norm) -> Tensor:
    """Each example's next candidate."""
    propose, numbers = (propose_square, 2) if norm == "Linf" else (propose_bump, 5)
    numbers += run.x.shape[1]
    places = run.query[:, None] * numbers + torch.arange(numbers, device=run.query.device)
    drawn = Draws(run.seed, run.index).uniform_at(places, "square")
    return propose(run.x, run.x_adv, side, run.eps, norm, drawn)


def one_query(oracle: Oracle, run: Run, phase: Phase, *, norm: Norm) -> Tensor:
    """The next query of every example, as a step of fixed shape. One that the oracle left unanswered comes again."""
    side, last = phase.kind  # pyright: ignore[reportGeneralTypeIssues]
    candidate, going = proposed(run, side, norm), run.query <= last
    new = going & differs(candidate, run.x_adv)
    found, answered = oracle.compared_margins(candidate, run.y, Margins(run.value, run.rough), new, run.query)
    larger = new & answered & (found.value > run.value)
    run.query = run.query + (going & (answered | ~new))
    run.x_adv = torch.where(per_example(larger, candidate), candidate, run.x_adv)
    run.value, run.rough = torch.where(larger, found.value, run.value), torch.where(larger, found.rough, run.rough)
    return larger & (run.value > 0)


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Which images are not the same, shape (B,): by their distance, since comparing takes a CPU four times as long."""
    return (one - other).flatten(1).abs_().amax(1) > 0


def stay(oracle: Oracle, run: Run, phase: Phase) -> None:
    """A query has gone where it goes already."""


def advance(oracle: Oracle, run: Run, going: Tensor, side: int, norm: Norm, last: int) -> Tensor:
    """The next queries of the examples that are going, up to the first of them that climbs; returns which fell, (B,).

    All are proposed from where the example is, so those after one that climbs are in vain, and come again.
    """
    # As many queries of each example at once as a batch takes.
    ahead = max(1, min(AHEAD, oracle.batch // len(going)))
    rows = going.repeat(ahead)
    query = run.query[rows] + torch.arange(ahead, device=rows.device).repeat_interleave(len(going))
    rows, query = rows[query <= last], query[query <= last]
    before = run.with_rows({}) if len(going) == len(run.y) == len(rows) else run[rows]
    before.query = query
    candidate = proposed(before, side, norm)
    # Some squares change nothing, as where the image lies on that side of the ball already: they need no pass.
    new = differs(candidate, before.x_adv).nonzero().squeeze(1)
    than = Margins(before.value[new], before.rough[new])
    asked = candidate if len(new) == len(rows) else candidate.index_select(0, new)
    larger, (value, rough) = oracle.larger_margins(asked, before.y[new], than)
    up = new[larger]
    # Rows are query by query: the first that climbs is the one at the lowest place.
    none = len(rows)
    first = torch.full_like(run.query, none).scatter_reduce_(0, rows[up], up, "amin")
    run.query[going] = torch.minimum(run.query[going] + ahead, torch.full_like(going, last + 1))
    moved = (first < none).nonzero().squeeze(1)
    place = first[moved]
    run.x_adv[moved], run.query[moved] = candidate[place], query[place] + 1
    at = torch.searchsorted(up, place)
    run.value[moved], run.rough[moved] = value[at], rough[at]
    claimed = torch.zeros_like(run.y, dtype=torch.bool)
    claimed[moved] = run.value[moved] > 0
    return oracle.is_done(run.x_adv, run.y, claimed)


def side_length(x: Tensor, share: float, query: int, norm: Norm) -> int:
    """Pixels along a side; odd, and three at least, for the bumps of L2 and L1."""
    height, width = x.shape[2:]
    share /= 2 ** sum(query > after for after in HALVINGS)
    side = max(round(math.sqrt(share * height * width)), 1)
    if norm != "Linf":
        side = max(side, 3) + (max(side, 3) % 2 == 0)
    return min(side, height, width)


def stripes(x: Tensor, eps: Tensor, draws: Draws) -> Tensor:
    """The first guess in Linf: every column of every channel up or down by eps."""
    return (x + beside(eps, x) * signs(draws, (x.shape[1], 1, x.shape[3]), "square/stripes", x)).clamp(0, 1)


def propose_square(x: Tensor, x_adv: Tensor, side: int, eps: Tensor, norm: Norm, numbers: Tensor) -> Tensor:
    """A square of each channel moved to one side of the ball. numbers: (B, 2 + channels)."""
    n, channels, _, width = x.shape
    down, right = corners(numbers, side, x)
    steps = torch.arange(side, device=x.device)
    pixels = ((down[:, None] + steps) * width)[:, :, None] + (right[:, None] + steps)[:, None, :]
    pixels = pixels.reshape(n, 1, side * side).expand(n, channels, side * side)
    original = x.flatten(2).gather(2, pixels)
    radius: Any = beside(eps, original)
    move = torch.where(numbers[:, 2:, None] < 0.5, -2 * radius, 2 * radius)
    moved = x_adv.flatten(2).gather(2, pixels) + move
    moved = moved.maximum(original - radius).minimum(original + radius).clamp(0, 1)
    return x_adv.flatten(2).scatter(2, pixels, moved).reshape(x.shape)
