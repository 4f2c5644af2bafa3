"""An adversary that surely exists is found by every attack that claims its threat model, and none where there is none."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.norms import dual_size, inside
from robustlib.rng import Draws

N, EPS = 60, 0.06


class Planted(nn.Module):
    """Class 0 on one side of a plane, class 1 beyond it, and no other class anywhere. tilt: of the plane, radians."""

    def __init__(self, shape: tuple[int, ...], tilt: float = 0.0):
        super().__init__()
        w, aside = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        self.w = w if not tilt else math.cos(tilt) * w + math.sin(tilt) * aside

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.cat([-rise[:, None], rise[:, None], torch.full((len(x), 8), -50.0)], 1)


FEWER: dict[str, dict[str, Any]] = {
    "hopskipjump": {"queries": 2000},
    "square": {"queries": 2000},
    "spsa": {"queries": 2000},
    "nes": {"queries": 2000},
    "pgd": {"steps": 20},
    "noise": {"queries": 200},
    "transfer": {"surrogate": Planted((1, 8, 8), tilt=0.6)},
}
GRADIENTS = [
    "fgsm",
    "pgd",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "fab-t",
    "square",
    "fmn",
    "spsa",
    "nes",
    "hopskipjump",
    "transfer",
]
PLACES = [(name, norm) for norm in ("Linf", "L2") for name in GRADIENTS] + [
    ("deepfool", "L2"),
    pytest.param("cw", "L2", marks=pytest.mark.slow),
    ("mifgsm", "Linf"),
]
CHANCE = [("noise", "Linf"), ("noise", "L2"), ("noise", "L1")]


def plant(n: int, norm: Norm, begins: float, eps: float = EPS) -> tuple[Planted, Tensor, Tensor]:
    """The model, and images of class 0 that lie at this share of the radius from the plane."""
    x = 0.3 + 0.4 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Planted((1, 8, 8))
    there = ((x - 0.5) * model.w).flatten(1).sum(1)
    wanted = -begins * eps * dual_size(model.w[None], norm)
    x = x + ((wanted - there) / model.w.square().sum()).reshape(-1, 1, 1, 1) * model.w
    assert ((x > eps / 2) & (x < 1 - eps / 2)).all()
    return model, x, torch.zeros(n, dtype=torch.long)


def run(name: str, norm: Norm, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack = partial(ATTACKS[name], norm=norm, eps=EPS, **FEWER.get(name, {}))
    found = attack(model, x, y, draws=Draws(0, torch.arange(len(x))))
    assert inside(found, x, EPS, norm).all()
    with torch.no_grad():
        return model(found).argmax(1) != y


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), PLACES)
def test_a_planted_adversary_is_found(name: str, norm: Norm):
    assert run(name, norm, *plant(N, norm, 0.5)).float().mean() >= 0.95


@pytest.mark.parametrize(("name", "norm"), CHANCE)
def test_chance_finds_what_lies_near(name: str, norm: Norm):
    """In 64 dimensions a random point of the sphere gains an eighth of the radius or so."""
    assert run(name, norm, *plant(N, norm, 0.12)).float().mean() >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [*PLACES, *CHANCE])
def test_none_is_found_where_there_is_none(name: str, norm: Norm):
    assert not run(name, norm, *plant(8, norm, 1.02)).any()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_autoattack_finds_it(norm: Norm):
    eps = 5 * EPS if norm == "L1" else EPS
    model, x, y = plant(N, norm, 0.5, eps)
    attacks = [attack for _, attack in ENSEMBLES["autoattack"](norm=norm, eps=eps).stages]
    assert (attack_in_sequence(model, x, y, attacks).prediction != y).float().mean() >= 0.95
