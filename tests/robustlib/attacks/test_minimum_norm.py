"""Carlini-Wagner and fast minimum-norm: exact distances on a linear model, one example's independence, and foolbox."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS as EVERY
from robustlib.attacks.cw import cw
from robustlib.attacks.fmn import fmn, project_each
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.predict import correct
from robustlib.inference.replica import Replica
from robustlib.losses import margin
from robustlib.norms import project, size

NORMS: list[Norm] = ["Linf", "L2", "L1"]
# Fewer and larger steps of Adam than the default's, to end soon.
quick_cw = partial(cw, norm="L2", steps=60, search_steps=5, step_size=0.1, initial_const=0.01)
ATTACKS = {**{f"fmn-{norm}": partial(fmn, norm=norm, steps=30) for norm in NORMS}, "cw": quick_cw}


class Linear(nn.Module):
    """Two classes; the first logit minus the second is <normal, x - 0.5>."""

    def __init__(self, normal: Tensor):
        super().__init__()
        weight = torch.stack([normal, torch.zeros_like(normal)])
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(-0.5 * weight.sum(1))

    def forward(self, x: Tensor) -> Tensor:
        # Not as a matrix product: over 75 pixels its last bits depend on the place in the batch.
        return (x.flatten(1)[:, None] * self.weight).sum(2) + self.bias


@pytest.fixture(scope="module")
def linear() -> Linear:
    """Over 75 pixels, which is no multiple of the floats in a vector register: single pixels are left over."""
    return Linear(torch.randn(75, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(60, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def exact_distance(model: Linear, x: Tensor, norm: Norm, confidence: float = 0.0) -> list[float]:
    """The least distance, within the box, at which the gap of the logits is -confidence: one image at a time, the step
    along the best direction found by bisection. In L1 the steepest pixels are filled one after the other.
    """
    normal, distances = model.weight.detach()[0].double(), []
    for image in x.double().flatten(1):
        gap = (image - 0.5) @ normal
        need, down = gap.abs().item() + confidence, -normal * gap.sign()
        room = torch.where(down > 0, 1 - image, image)
        if norm == "L1":
            spent = 0.0
            for pixel in normal.abs().argsort(descending=True):
                step = min(room[pixel].item(), need / normal[pixel].abs().item())
                spent, need = spent + step, need - step * normal[pixel].abs().item()
            distances.append(spent)
            continue
        pace = torch.ones_like(down) if norm == "Linf" else down.abs()
        low, high = 0.0, 10.0
        for _ in range(60):
            t = (low + high) / 2
            low, high = (low, t) if (normal.abs() * (t * pace).minimum(room)).sum() > need else (t, high)
        step = (high * pace).minimum(room)
        distances.append((step.max() if norm == "Linf" else step.norm()).item())
    return distances


@pytest.mark.slow
@pytest.mark.parametrize("at", ["inside", "at the border"])
@pytest.mark.parametrize("norm", NORMS)
def test_fmn_finds_the_exact_distance(norm: Norm, at: str, linear: Linear, x: Tensor):
    """At the border, half of the pixels are black or white, and a projection cut at the box would fall short."""
    x = 0.4 + 0.2 * x if at == "inside" else (3 * x - 1).clamp(0, 1)
    y = linear(x).argmax(1)
    x_adv = fmn(linear, x, y, norm=norm, steps=300 if norm == "L1" else 100)
    exact = torch.tensor(exact_distance(linear, x, norm))
    assert not correct(linear, x_adv, y).any()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    ratio = size(x_adv - x, norm) / exact
    assert ratio.min() > 0.999 and ratio.median() < 1.002 and ratio.max() < 1.02


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_cw_finds_the_exact_distance(confidence: float, linear: Linear, x: Tensor):
    x = 0.2 + 0.6 * x
    y = linear(x).argmax(1)
    x_adv = cw(linear, x, y, steps=150, step_size=0.003, confidence=confidence)
    assert not correct(linear, x_adv, y).any()
    assert (margin(linear(x_adv), y) >= confidence).all()
    found, exact = size(x_adv - x, "L2"), torch.tensor(exact_distance(linear, x, "L2", confidence))
    assert (found / exact).min() > 0.999 and (found / exact).median() < 1.005
    # Adam's first step moves every pixel alike, by up to 0.0015: what lies nearer than that is overshot.
    assert (found <= 1.02 * exact + 0.002).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_radius_keeps_what_lies_within_it_and_returns_the_rest(name: str, net: nn.Module, test):
    x, y = test[0][:12], test[1][:12]
    norm: Norm = ATTACKS[name].keywords["norm"]
    free = ATTACKS[name](net, x, y)
    distance = size(free - x, norm)
    eps = distance.median().item()
    bounded = ATTACKS[name](net, x, y, eps=eps)
    near = distance <= eps
    assert near.sum() == 6
    assert torch.equal(bounded[near], free[near]) and torch.equal(bounded[~near], x[~near])
    assert not correct(net, free, y).any()
    assert free.min() >= 0 and free.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_misclassified_images_are_returned_as_they_are(name: str, linear: Linear, x: Tensor):
    predicted = linear(x).argmax(1)
    y = torch.where(torch.arange(60) % 2 == 0, predicted, 1 - predicted)
    x_adv = ATTACKS[name](linear, x, y)
    assert torch.equal(x_adv[1::2], x[1::2])
    assert not correct(linear, x_adv, y).any()
    assert torch.equal(ATTACKS[name](linear, x, 1 - predicted), x)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_example_has_the_same_bits_in_any_company(name: str, linear: Linear, x: Tensor, net: nn.Module, test):
    for model, (images, y) in ((net, test), (linear, (x, linear(x).argmax(1)))):
        search = make_replicas(model, images[:64]).search
        attack = partial(ATTACKS[name], search, **({"steps": 20, "search_steps": 3} if name == "cw" else {}))
        order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
        together = attack(images[:20], y[:20])
        assert (together != images[:20]).flatten(1).any(1).sum() > 5
        assert torch.equal(attack(images[order], y[order]), together[order])
        for i in range(6):
            assert torch.equal(attack(images[i : i + 1], y[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("name", ATTACKS)
def test_a_flat_model_gives_no_nan(name: str):
    """Every gradient is zero: the attack fails, and says so with the finite image it started from."""
    model = Linear(torch.zeros(4))
    model.bias.data[0] = 1
    x = torch.tensor([0.0, 0.5, 1.0, 0.25]).repeat(2, 1).reshape(2, 1, 2, 2)
    assert torch.equal(ATTACKS[name](model, x, torch.zeros(2, dtype=torch.long)), x)


def test_a_projection_of_its_own_radius_is_the_one_of_one_radius(x: Tensor):
    delta, radius = x - 0.5, torch.linspace(0.01, 2, 60)
    for norm in NORMS:
        singly = torch.cat([project(delta[i : i + 1], radius[i].item(), norm) for i in range(60)])
        torch.testing.assert_close(project_each(delta, radius, norm), singly)


@pytest.mark.slow
def test_cw_gives_up_an_example_whose_loss_does_not_fall():
    """Of two images one lies where the gradient is zero: it is passed until the second check after the start."""

    class Half(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clamp_min(0.5)) + torch.tensor([1.0, 0.0])

    x = torch.stack([torch.full((1, 2, 2), 0.25), torch.full((1, 2, 2), 0.9)])
    passes = []
    for rows in (x[:1], x[1:], x):
        replica = Replica(Half(torch.ones(4)))
        cw(replica, rows, torch.zeros(len(rows), dtype=torch.long), steps=100, search_steps=1, initial_const=1.0)
        passes.append(replica.count.gradients)
    assert passes == [21, passes[1], 21 + passes[1]]
    assert passes[1] > 50


@pytest.mark.parametrize("norm", ["Linf", "L1"])
def test_cw_refuses_other_norms(norm: Any, linear: Linear, x: Tensor):
    with pytest.raises(ValueError, match=f"cw: expected norm L2, got '{norm}': fmn and fab take all"):
        cw(linear, x, linear(x).argmax(1), norm=norm)


def digits_that_are_right(net: nn.Module, test: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    right = correct(net, *test)
    return test[0][right][:60], test[1][right][:60]


def median_distance(net: nn.Module, x_adv: Tensor, x: Tensor, y: Tensor, norm: Norm) -> float:
    """Where the image is still classified correctly, nothing was found: infinitely far."""
    return torch.where(correct(net, x_adv, y), torch.inf, size(x_adv - x, norm)).median().item()


@pytest.mark.peers
@pytest.mark.parametrize("norm", NORMS)
def test_fmn_is_as_near_as_foolbox(norm: Norm, net: nn.Module, test):
    """Foolbox's L2 projection ignores its radius (it divides the norms by themselves): there ours is far nearer."""
    foolbox = pytest.importorskip("foolbox", reason="needs the dependency group `peers`")
    x, y = digits_that_are_right(net, test)
    kind = {"Linf": foolbox.attacks.LInfFMNAttack, "L2": foolbox.attacks.L2FMNAttack, "L1": foolbox.attacks.L1FMNAttack}
    theirs = kind[norm](steps=50)(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=None)[1]
    ours = fmn(net, x, y, norm=norm, steps=50)
    assert not correct(net, ours, y).any()
    assert median_distance(net, ours, x, y, norm) <= 1.02 * median_distance(net, theirs, x, y, norm)


@pytest.mark.peers
def test_cw_is_as_near_as_foolbox(net: nn.Module, test):
    foolbox = pytest.importorskip("foolbox", reason="needs the dependency group `peers`")
    x, y = digits_that_are_right(net, test)
    kind = foolbox.attacks.L2CarliniWagnerAttack(steps=60, binary_search_steps=5, stepsize=0.1, initial_const=0.01)
    theirs = kind(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=None)[1]
    ours = quick_cw(net, x, y)
    assert not correct(net, ours, y).any()
    assert median_distance(net, ours, x, y, "L2") <= 1.02 * median_distance(net, theirs, x, y, "L2")


class Shifted(nn.Module):
    """A copy that is off by a little, as half precision is: it takes images of class 0 near the boundary for broken."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + torch.tensor([-0.05, 0.05])


@pytest.mark.parametrize("name", ["deepfool", "fmn", "fab", "fab-t", pytest.param("cw", marks=pytest.mark.slow)])
def test_images_that_only_the_copy_takes_for_broken_are_attacked(name: str, linear: Linear, x: Tensor):
    """They lie a hair on the right side: returned as they are, they would count as robust."""
    x = 0.2 + 0.6 * x
    y = linear(x).argmax(1)
    near = x + 0.98 * (ATTACKS["fmn-L2"](linear, x, y) - x)
    chosen = correct(linear, near, y) & ~correct(Shifted(linear), near, y)
    assert chosen.sum() > 5
    x, y = near[chosen][:6], y[chosen][:6]
    fine = Replica(linear, sizes=())
    copy = Replica(Shifted(linear), sizes=(), drift=0.1, judge=fine, in_float32=fine)
    norm: Norm = "L2"
    x_adv = EVERY[name](copy, x, y, norm=norm, eps=0.5)
    assert not correct(linear, x_adv, y).any()
    assert (size(x_adv - x, norm) <= 0.5).all()
