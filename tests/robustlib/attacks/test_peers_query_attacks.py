"""HopSkipJump and SPSA against foolbox and torchattacks at equal queries, on the digits' network."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.hopskipjump import hopskipjump
from robustlib.attacks.spsa import spsa
from robustlib.inference.predict import correct
from robustlib.norms import size
from tests.helpers.counting_model import Counted

foolbox = pytest.importorskip("foolbox", reason="needs the dependency group `peers`")
torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks, see the Makefile")
pytestmark = pytest.mark.peers


@pytest.fixture
def standing(net: nn.Module, test: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = test
    right = correct(net, x, y).nonzero().flatten()[:60]
    return x[right], y[right]


def median_distance(net: nn.Module, x: Tensor, y: Tensor, found: Tensor, norm: Norm) -> float:
    fell = ~correct(net, found, y)
    return torch.where(fell, size(found - x, norm), torch.inf).median().item()


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_hopskipjump_comes_at_least_as_near_as_foolbox(norm: Norm, net: nn.Module, standing):
    x, y = standing
    counted = Counted(net).eval()
    attack = foolbox.attacks.HopSkipJumpAttack(steps=6, constraint="l2" if norm == "L2" else "linf")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = attack(foolbox.PyTorchModel(counted, bounds=(0, 1)), x, y, epsilons=None)[1]
    spent = torch.zeros_like(y)
    ours = hopskipjump(net, x, y, norm=norm, queries=counted.shown // len(x), spent=spent)
    assert spent.sum() <= counted.shown
    reached = median_distance(net, x, y, ours, norm)
    assert 0.01 < reached <= median_distance(net, x, y, theirs, norm)


def test_spsa_breaks_at_least_as_much_as_torchattacks(net: nn.Module, standing):
    x, y = standing
    counted = Counted(net).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchattacks.SPSA(counted, eps=0.1, nb_iter=5, nb_sample=64)(x, y)
    spent = torch.zeros_like(y)
    ours = spsa(net, x, y, norm="Linf", eps=0.1, queries=counted.shown // len(x), spent=spent)
    assert spent.sum() <= counted.shown
    accuracy = correct(net, ours, y).double().mean()
    assert 0 < accuracy <= correct(net, theirs, y).double().mean()
