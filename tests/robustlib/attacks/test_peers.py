"""FGSM, PGD and DeepFool against torchattacks and foolbox, on all 449 test digits."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.deepfool import deepfool
from robustlib.attacks.mifgsm import mifgsm
from robustlib.attacks.pgd import fgsm, pgd
from robustlib.inference.predict import correct
from robustlib.losses import margin
from robustlib.norms import size
from robustlib.rng import Draws

foolbox = pytest.importorskip("foolbox", reason="needs the dependency group `peers`")
torchattacks = pytest.importorskip("torchattacks", reason="needs torchattacks, see the Makefile")

pytestmark = pytest.mark.peers
RADII: list[tuple[Norm, float]] = [
    *(("Linf", eps) for eps in (0.03, 0.08, 0.12)),
    *(("L2", eps) for eps in (0.3, 0.5, 0.8)),
]
STEPS = 10


def robust(net: nn.Module, x_adv: Tensor, y: Tensor) -> float:
    return correct(net, x_adv, y).double().mean().item()


def foolbox_run(attack, net: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Tensor:
    return attack(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=eps)[1]


def peer_pgd(library: str, net: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, start: bool) -> Tensor:
    step = 2.5 * eps / STEPS
    if library == "foolbox":
        kind = foolbox.attacks.LinfPGD if norm == "Linf" else foolbox.attacks.L2PGD
        return foolbox_run(kind(abs_stepsize=step, steps=STEPS, random_start=start), net, x, y, eps)
    if norm == "Linf":
        return torchattacks.PGD(net, eps=eps, alpha=step, steps=STEPS, random_start=start)(x, y)
    # It adds eps_for_division to the size of the *mean* loss's gradient: at 1e-10 steps from confident images come out
    # short, which is no part of the method.
    return torchattacks.PGDL2(net, eps=eps, alpha=step, steps=STEPS, random_start=start, eps_for_division=1e-30)(x, y)


@pytest.mark.parametrize("norm, eps", RADII)
def test_fgsm(norm: Norm, eps: float, net: nn.Module, test):
    x, y = test
    ours = robust(net, fgsm(net, x, y, norm=norm, eps=eps), y)
    kind = foolbox.attacks.LinfFastGradientAttack if norm == "Linf" else foolbox.attacks.L2FastGradientAttack
    theirs = [foolbox_run(kind(), net, x, y, eps)]
    if norm == "Linf":
        theirs.append(torchattacks.FGSM(net, eps=eps)(x, y))
    assert 0.1 < ours < 0.97
    assert [robust(net, x_adv, y) for x_adv in theirs] == pytest.approx([ours] * len(theirs), abs=0.005)


@pytest.mark.parametrize("library", ["foolbox", "torchattacks"])
@pytest.mark.parametrize("norm, eps", RADII)
def test_pgd_from_the_image_itself(library: str, norm: Norm, eps: float, net: nn.Module, test):
    x, y = test
    ours = pgd(net, x, y, norm=norm, eps=eps, steps=STEPS, random_start=False)
    theirs = peer_pgd(library, net, x, y, norm, eps, start=False)
    assert 0.05 < robust(net, ours, y) < 0.97
    assert robust(net, theirs, y) == pytest.approx(robust(net, ours, y), abs=0.005)
    # The same images, but for examples where rounding turned a sign.
    alike = size(ours - theirs, "Linf") < 1e-3 * eps
    assert alike.double().mean() > 0.9


@pytest.mark.parametrize("eps", [0.03, 0.08, 0.12])
def test_mifgsm(eps: float, net: nn.Module, test):
    """Theirs takes every step; of images that stand to the end ours does too, and those are the same."""
    x, y = test
    ours = mifgsm(net, x, y, eps=eps, steps=STEPS)
    theirs = torchattacks.MIFGSM(net, eps=eps, alpha=eps / STEPS, steps=STEPS, decay=1.0)(x, y)
    assert 0.05 < robust(net, ours, y) < 0.97
    assert robust(net, theirs, y) == pytest.approx(robust(net, ours, y), abs=0.005)
    stand = correct(net, ours, y)
    alike = size(ours - theirs, "Linf")[stand] < 1e-3 * eps
    assert alike.double().mean() > 0.9


@pytest.mark.parametrize(
    "library, norm, eps", [("foolbox", "Linf", 0.05), ("torchattacks", "Linf", 0.05), ("foolbox", "L2", 0.3)]
)
def test_pgd_from_a_random_point(library: str, norm: Norm, eps: float, net: nn.Module, test):
    """Averaged over starts, since the peers draw theirs from torch's own generator.

    Without torchattacks in L2: its start has a uniform radius, so it lies nearer the image than one uniform in the
    ball, and ten steps from there get further (52.2 % against 54.7 % for foolbox and for us at eps 0.5).
    """
    x, y = test
    runs = 6
    ours = [
        robust(net, pgd(net, x, y, norm=norm, eps=eps, steps=STEPS, draws=Draws(seed, torch.arange(449))), y)
        for seed in range(runs)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [robust(net, peer_pgd(library, net, x, y, norm, eps, start=True), y) for _ in range(runs)]
    assert math.fsum(theirs) / runs == pytest.approx(math.fsum(ours) / runs, abs=0.005)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_deepfool_against_foolbox(norm: Literal["L2", "Linf"], net: nn.Module, test):
    """Foolbox starts from the class it predicts, so only images that are classified correctly compare."""
    right = correct(net, *test)
    x, y = test[0][right], test[1][right]
    kind = foolbox.attacks.L2DeepFoolAttack if norm == "L2" else foolbox.attacks.LinfDeepFoolAttack
    # The default, candidates=10, is all of our classes; loss="logits" is the paper's and ours.
    theirs = foolbox_run(kind(steps=50, candidates=10, overshoot=0.02, loss="logits"), net, x, y, None)
    ours = deepfool(net, x, y, norm=norm, steps=50, overshoot=0.02)
    assert not correct(net, ours, y).any() and not correct(net, theirs, y).any()
    assert size(ours - x, norm).median().item() == pytest.approx(size(theirs - x, norm).median().item(), rel=0.02)
    assert (size(ours - theirs, "Linf") < 1e-3).double().mean() > 0.95


def test_deepfool_against_torchattacks(net: nn.Module, test):
    """It takes one image at a time, so forty serve; it overshoots each step instead of the sum, and adds no 1e-4.

    Without that 1e-4 some of its images end on the boundary, a rounding short of it, and use up every step there: its
    success says nothing, its distance does, and that moves no more after some ten steps.
    """
    right = correct(net, *test)
    x, y = test[0][right][:40], test[1][right][:40]
    theirs = torchattacks.DeepFool(net, steps=15, overshoot=0.02)(x, y)
    ours = deepfool(net, x, y, norm="L2", steps=50, overshoot=0.02)
    assert margin(net(theirs), y).min() > -1e-4 and margin(net(ours), y).min() > 0
    assert size(ours - x, "L2").median().item() == pytest.approx(size(theirs - x, "L2").median().item(), rel=0.02)
