"""Radii of one attack in one running batch: who falls goes on at the next radius beside those still at theirs."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.types import AttackFunction
from robustlib.evaluation.attack_sequence import check_numbers
from robustlib.evaluation.descent import Descent
from robustlib.inference.oracle import Oracle
from robustlib.inference.predict import verdict
from robustlib.inference.running_batch import Begun, Ended, begun, run_out
from robustlib.rng import Draws


def descend(
    descent: Descent,
    model: nn.Module,
    oracle: Oracle,
    attack: AttackFunction,
    *,
    repeats: int,
    norm: Norm,
    draws: Draws,
    clean: Tensor,
) -> None:
    """Take every example down the radii, by an attack that is one run of equal steps, so many times at each.

    Each radius gets its share of the seconds by the steps that were taken at it.
    """
    standing = (clean == descent.y).nonzero().squeeze(1)
    steps = standing.new_zeros(len(descent.eps), repeats)
    way = Way(descent, model, oracle, attack, norm, draws, torch.zeros_like(descent.level), steps, standing[:0])
    began = time.perf_counter()
    run_out(oracle, way, standing)
    seconds = steps * (time.perf_counter() - began) / steps.sum().clamp_min(1)
    for whole, shares in zip(descent.seconds, seconds.tolist(), strict=True):
        whole[:] = shares


@dataclass
class Way:
    """What happens to an example between two runs.

    turn: which repeat each example has come to, shape (B,).  steps: taken at each radius in each repeat.
    drawn_back: examples that fell, and whose image at the next radius nobody has judged yet.
    """

    descent: Descent
    model: nn.Module
    oracle: Oracle
    attack: AttackFunction
    norm: Norm
    draws: Draws
    turn: Tensor
    steps: Tensor
    drawn_back: Tensor

    @property
    def waiting(self) -> int:
        return len(self.drawn_back)

    def begin(self, place: Tensor) -> list[Begun]:
        """The first run at a smaller radius starts from the image drawn back to it, all others at random."""
        turn = self.turn[place]
        drawn_back = (turn == 0) & (self.descent.level[place] < len(self.descent.eps) - 1)
        rows = [(place[drawn_back], 0, self.descent.image)]
        rows += [(place[~drawn_back & (turn == each)], each, None) for each in range(self.steps.shape[1])]
        return [self.begin_alike(*alike) for alike in rows if len(alike[0])]

    def begin_alike(self, place: Tensor, turn: int, images: Tensor | None) -> Begun:
        way, start = self.descent, {} if images is None else {"start": images[place]}
        eps, draws = way.eps[way.level[place]], self.draws[place].restart(turn)
        return begun(self.attack, place, way.x[place], way.y[place], eps=eps, draws=draws, **start)

    def settle(self, ended: Ended) -> Tensor:
        """Judge what was found, and what was drawn back. Who stands after the last repeat is through; who fell is drawn
        back once more; all others go on.
        """
        way, back, count = self.descent, self.drawn_back, len(ended.place)
        place, images = torch.cat([ended.place, back]), torch.cat([ended.image, way.image[back]])
        check_numbers("an attack at several radii", images)
        doubted = torch.cat([ended.claimed, torch.zeros_like(back, dtype=torch.bool)])
        predicted = verdict(self.model, self.oracle, images, way.y[place], doubted=doubted)
        more = self.record(ended, predicted[:count])
        broken = way.still_broken(back, predicted[count:])
        self.drawn_back = way.draw_back(torch.cat([ended.place[~more], back[broken]]), self.norm)
        return torch.cat([ended.place[more], back[~broken]])

    def record(self, ended: Ended, predicted: Tensor) -> Tensor:
        """What runs have found, as after any attack. Returns who stands, and has another repeat to come, shape (B,)."""
        way, place, repeats = self.descent, ended.place, self.steps.shape[1]
        turn, fell = self.turn[place], predicted != way.y[place]
        self.steps.view(-1).index_add_(0, way.level[place] * repeats + turn, ended.steps)
        more = ~fell & (turn < repeats - 1)
        self.turn[place] = torch.where(more, turn + 1, 0)
        for rows, images, by in (
            (fell, ended.image, turn),
            (~fell & ~more, way.x[place], torch.full_like(turn, repeats)),
        ):
            way.image[place[rows]] = images[rows]
            way.note(place[rows], images[rows], predicted[rows], by[rows])
        return more
