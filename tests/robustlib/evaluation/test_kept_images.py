"""The end of an evaluation looks at few images, and moves no more of them; the others are let go of batch by batch."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.checks.evaluation_checks import ROUNDED, to_round
from robustlib.datasets.lazy_images import LazyImages
from robustlib.evaluation.batches import Ready, evaluate_batches, make_ready
from robustlib.evaluation.kept_images import KeptImages
from robustlib.evaluation.outcome_checks import check_outcome
from robustlib.outcome import Batch, join

CPU = torch.device("cpu")
COUNT = 700


class Line(nn.Module):
    """Class 1 where the first pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


class Watched(LazyImages):
    """Notes how many images are asked for."""

    def __init__(self, images: np.ndarray):
        super().__init__(images)  # pyright: ignore[reportArgumentType]
        self.asked: list[int] = []

    def __getitem__(self, rows: slice | Tensor | np.ndarray) -> Tensor:
        found = super().__getitem__(rows)
        self.asked.append(len(found))
        return found


@pytest.fixture
def evaluated() -> tuple[Ready, Watched, list[Batch]]:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 2, 2)).astype(np.uint8)
    x, y = Watched(pixels), torch.from_numpy((pixels[:, 0, 0, 0] > 127).astype(np.int64))
    ready = make_ready(Line(), x, 2, CPU)
    attack = [("pgd", partial(ATTACKS["pgd"], eps=0.1, steps=3))]
    return ready, x, list(evaluate_batches(Line(), x, y, attack, eps=0.1, ready=ready, batch_size=100))


def test_checks_ask_for_few_images_and_say_the_same(evaluated: tuple[Ready, Watched, list[Batch]]):
    ready, x, batches = evaluated
    outcome, x_adv = join([batch.outcome for batch in batches]), torch.cat([batch.x_adv for batch in batches])
    kept = KeptImages(5)
    for batch in batches:
        kept.add(batch)
    attacks = [partial(ATTACKS["pgd"], eps=0.1, steps=3)]
    common: dict = {"norm": "Linf", "eps": 0.1, "seed": 0, "attacks": attacks, "eot_draws": 2, "device": CPU}
    x.asked.clear()
    found = check_outcome(ready, x, outcome, kept, **common)
    assert sum(x.asked) == 128 and max(x.asked) == 128  # one random point for each of these
    assert found == check_outcome(ready, torch.from_numpy(x.images), outcome, x_adv, **common)
    assert {one.name for one in found} >= {"noise", "eight-bit", "unmoved", "normalisation"}


@pytest.mark.parametrize("first", [0, 3, 250, COUNT + 9])
def test_what_is_kept_is_what_is_stored_and_what_is_rounded(first: int, evaluated: tuple[Ready, Watched, list[Batch]]):
    _, _, batches = evaluated
    outcome, x_adv = join([batch.outcome for batch in batches]), torch.cat([batch.x_adv for batch in batches])
    kept = KeptImages(first)
    for batch in batches:
        kept.add(batch)
    rows = torch.from_numpy(to_round(outcome))
    assert len(rows) == ROUNDED and torch.equal(kept[rows], x_adv[rows])
    assert torch.equal(kept.first_images(), x_adv[:first])
    assert sum(map(len, kept.images)) == len(set(range(min(first, COUNT))) | set(rows.tolist()))
