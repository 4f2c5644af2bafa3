"""Running batches: who comes later, at whatever step the others are, finds what it finds alone."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.oracle import Oracle
from robustlib.inference.replica import Replica
from robustlib.inference.running_batch import Begun, Ended, begun, run_out
from robustlib.rng import Draws


@dataclass
class InTurn:
    """Examples that come a few at a time: some more whenever somebody is done."""

    x: Tensor
    y: Tensor
    eps: Tensor
    coming: list[Tensor]
    steps: int
    images: Tensor = field(init=False)
    ended: list[Ended] = field(default_factory=list)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.images = torch.full_like(self.x, torch.nan)

    def begin(self, place: Tensor) -> list[Begun]:
        attack = partial(ATTACKS["pgd"], steps=self.steps)
        halves = (part for part in place.tensor_split(2) if len(part))
        return [
            begun(attack, rows, self.x[rows], self.y[rows], eps=self.eps[rows], draws=Draws(0, rows)) for rows in halves
        ]

    def settle(self, ended: Ended) -> Tensor:
        assert self.images[ended.place].isnan().all()
        self.images[ended.place] = ended.image
        self.ended.append(ended)
        return self.coming.pop() if self.coming else ended.place[:0]


def in_turn(oracle: Oracle, x: Tensor, y: Tensor, eps: Tensor, steps: int) -> InTurn:
    first, *others = torch.arange(len(x)).split(len(x) // 6)
    found = InTurn(x, y, eps, others, steps)
    run_out(oracle, found, first)
    return found


@pytest.mark.parametrize("half", [False, True])
def test_examples_at_steps_of_their_own_find_what_they_find_alone(half: bool, net: nn.Module, test):
    x, y = test[0][:72], test[1][:72]
    search = make_replicas(net, x[:64], half=half).search
    eps = torch.linspace(0.02, 0.16, 72, dtype=torch.float64)
    found = in_turn(search, x, y, eps, steps=9)
    alone = ATTACKS["pgd"](search, x, y, eps=eps, steps=9, draws=Draws(0, torch.arange(72)))
    assert torch.equal(found.images, alone)
    place, steps, claimed = (
        torch.cat([getattr(part, name) for part in found.ended]) for name in ("place", "steps", "claimed")
    )
    assert place.sort().values.tolist() == list(range(72))
    assert 15 < claimed.sum() < 60 and (steps[~claimed] == 9).all() and len(steps[claimed].unique()) > 3
    assert search.is_done(alone[place], y[place], torch.ones_like(claimed))[claimed].all()


class Denying(Replica):
    """A replica whose judge denies a claim as long as the first pixel is below a bound."""

    def is_done(self, x: Tensor, y: Tensor, claimed: Tensor) -> Tensor:
        return claimed & (x[:, 0, 0, 0] >= 0.66)


def test_whose_claim_is_denied_goes_on_from_there():
    def net(x: Tensor) -> Tensor:
        return torch.stack([-x[:, 0, 0, 0], x[:, 0, 0, 0] - 1], 1)  # class 1 beyond one half

    x = torch.tensor([0.3, 0.42, 0.45, 0.49, 0.1, 0.47]).reshape(-1, 1, 1, 1)
    y, oracle = torch.zeros(6, dtype=torch.int64), Denying(net, sizes=(8,))
    eps = torch.full((6,), 0.2, dtype=torch.float64)
    found = in_turn(oracle, x, y, eps, steps=10)
    alone = ATTACKS["pgd"](oracle, x, y, eps=eps, steps=10, draws=Draws(0, torch.arange(6)))
    assert torch.equal(found.images, alone)
    # At most 0.2 away: the first and the fifth stay below one half; the second is denied to its end.
    torch.testing.assert_close(alone[:2].flatten(), torch.tensor([0.5, 0.62]))
    claimed = torch.cat([part.place[part.claimed] for part in found.ended])
    assert sorted(claimed.tolist()) == [3, 5] and (alone[[3, 5]] >= 0.66).all()


def test_a_beginning_takes_no_step_and_asks_nothing(net: nn.Module, test):
    x, y = test[0][:5], test[1][:5]
    first = begun(partial(ATTACKS["pgd"], steps=7, eps=0.1, random_start=False), torch.arange(5), x, y)
    assert torch.equal(first.run.x_adv, x) and len(first.phases) == 7
    with pytest.raises(AssertionError):  # several searches, one after the other: not for here
        begun(partial(ATTACKS["apgd-ce"], norm="L1", steps=7, eps=0.1), torch.arange(5), x, y)


def test_recordings_float16_and_unsteady_batches_are_left_in_rounds():
    steady = Replica(nn.Identity(), sizes=(8,))
    assert steady.mixes_steps and not Oracle().mixes_steps
    for other in ({"recorded": True}, {"precision": torch.float16}, {"sizes": ()}):
        assert not steady.but(**other).mixes_steps
