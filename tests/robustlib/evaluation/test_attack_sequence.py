"""The bookkeeping of attacks in turn, with attacks that do what they are told."""

import torch
from torch import Tensor, nn

from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.inference.predict import correct
from robustlib.rng import Draws


class Threshold(nn.Module):
    """Class 1 where the first pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(x[:, 0, 0, 0], 0.5), x[:, 0, 0, 0]], 1)


class Told:
    """Sets the pixels of the examples in `targets` to `value`, touches the second pixel of all, and takes notes."""

    def __init__(self, targets: set[int], value: float = 0.9):
        self.targets, self.value = targets, value
        self.seen: list[tuple[list[int], int]] = []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        assert len(x) == len(y) == len(draws.index)
        self.seen.append((draws.index.tolist(), draws.seed))
        x = x.clone()
        x[:, 0, 0, 1] = 0.25
        x[torch.tensor([int(i) in self.targets for i in draws.index]), 0, 0, 0] = self.value
        return x


def images() -> tuple[Tensor, Tensor]:
    x = torch.full((6, 1, 1, 2), 0.1)
    y = torch.tensor([0, 0, 1, 0, 0, 0])  # the third is misclassified as it is
    return x, y


def test_each_attack_sees_only_what_stands():
    x, y = images()
    draws = Draws(7, torch.tensor([10, 11, 12, 13, 14, 15]))
    attacks = [Told({11, 12}), Told({11, 13}), Told(set()), Told({10})]
    x_adv, _, broken_by, *_ = attack_in_sequence(Threshold(), x, y, attacks, draws=draws)
    assert [attack.seen[0][0] for attack in attacks] == [
        [10, 11, 13, 14, 15],
        [10, 13, 14, 15],
        [10, 14, 15],
        [10, 14, 15],
    ]
    assert broken_by.tolist() == [3, 0, -1, 1, 4, 4]
    # Clean where it was wrong already and where nothing was found: the second pixel is untouched there.
    assert x_adv[:, 0, 0, 0].allclose(torch.tensor([0.9, 0.9, 0.1, 0.9, 0.1, 0.1]))
    assert x_adv[:, 0, 0, 1].allclose(torch.tensor([0.25, 0.25, 0.1, 0.25, 0.1, 0.1]))
    assert torch.equal(x, images()[0])


def test_repeats_of_one_attack_get_fresh_draws():
    x, y = images()
    attack = Told(set())
    attack_in_sequence(Threshold(), x, y, [attack] * 3, draws=Draws(7, torch.arange(6)))
    seeds = [seed for _, seed in attack.seen]
    assert seeds == [Draws(7, torch.arange(1)).restart(n).seed for n in range(3)] and len(set(seeds)) == 3


def test_stops_when_nothing_stands():
    x, y = images()
    first, second = Told(set(range(6))), Told(set())
    _, _, broken_by, *_ = attack_in_sequence(Threshold(), x, y, [first, second])
    assert broken_by.tolist() == [0, 0, -1, 0, 0, 0] and second.seen == []


def test_without_attacks_the_clean_verdict_remains():
    x, y = images()
    x_adv, _, broken_by, *_ = attack_in_sequence(Threshold(), x, y, [])
    assert torch.equal(x_adv, x) and broken_by.tolist() == [0, 0, -1, 0, 0, 0]
    assert correct(Threshold(), x, y).tolist() == [True, True, False, True, True, True]
