"""Attacks that know a signal: they stay in the ball, raise it less than attacks that do not, and still fool the network."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.pgd import pgd
from robustlib.monitoring.adaptive_attacks import WithNoise, agreeing_under_noise, drawn_back, excess, staying_in_range
from robustlib.monitoring.image_statistics import image_statistics, out_of_range, ranges_of
from robustlib.monitoring.noise_votes import disagreement, noise_votes
from robustlib.monitoring.query_attacks import query_attack
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures
from robustlib.norms import size

N = 12


@pytest.fixture
def x(test: tuple[Tensor, Tensor]) -> Tensor:
    return test[0][:N]


@pytest.fixture
def y(test: tuple[Tensor, Tensor]) -> Tensor:
    return test[1][:N]


def fooled(net: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x_adv).argmax(1) != y


def differing(net: nn.Module, x: Tensor, sigma: float) -> np.ndarray:
    def ask(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(images)).numpy()

    votes = noise_votes(ask, x.numpy(), sigma=sigma, copies=24, random=np.random.default_rng(0))
    return disagreement(votes, ask(x.numpy()).argmax(1))


def test_an_attack_that_knows_the_noise_agrees_with_it(net: nn.Module, x: Tensor, y: Tensor):
    """Against PGD that stops where the class just changes: fewer noisy copies differ, and as many are fooled."""
    ball: dict[str, Any] = {"norm": "Linf", "eps": 0.2}
    with torch.no_grad():
        still = agreeing_under_noise(net, x, y, **ball, sigma=0.1, steps=15)
    plain = pgd(net, x, y, **ball, steps=15, stop_at_success=True).detach()
    assert (size(still - x, "Linf") <= 0.2 + 1e-6).all() and still.min() >= 0 and still.max() <= 1
    both = (fooled(net, still, y) & fooled(net, plain, y)).numpy()
    assert both.sum() > N / 2
    assert differing(net, still, 0.1)[both].mean() < 0.6 * differing(net, plain, 0.1)[both].mean()


def test_its_logits_are_the_mean_of_image_and_copies(net: nn.Module, x: Tensor):
    torch.manual_seed(0)
    found = WithNoise(net, 0.1, 2)(x)
    torch.manual_seed(0)
    copies = [x, x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x)]
    torch.testing.assert_close(found, torch.stack([net(one) for one in copies]).mean(0), rtol=1e-4, atol=1e-5)


def test_an_attack_that_knows_the_ranges_stays_in_them(net: nn.Module, x: Tensor, y: Tensor):
    ranges = ranges_of(x.numpy(), 0.0)
    narrow = {name: (low, low + 1.02 * (high - low)) for name, (low, high) in ranges.items()}
    radii: dict[Norm, float] = {"Linf": 0.25, "L2": 1.2}
    for norm, eps in radii.items():
        ball: dict[str, Any] = {"norm": norm, "eps": eps}
        inside = staying_in_range(net, x, y, **ball, ranges=narrow, steps=8)
        plain = pgd(net, x, y, **ball, steps=8).detach()
        assert (size(inside - x, norm) <= eps + 1e-5).all() and inside.min() >= 0 and inside.max() <= 1
        assert not out_of_range(inside.numpy() + 0.0, {k: (a - 1e-5, b + 1e-5) for k, (a, b) in narrow.items()}).any()
        assert out_of_range(plain.numpy(), narrow).mean() > 0.15 and fooled(net, inside, y).float().mean() > 0.4


def test_excess_is_counted_in_widths_of_the_range(x: Tensor):
    found = {name: value.double() for name, value in image_statistics(x.double()).items()}
    ranges = {"mean": (0.0, float(found["mean"][0]) / 2), "variance": (1.0, 3.0)}
    expected = float(found["mean"][0] - ranges["mean"][1]) / ranges["mean"][1] + (1 - float(found["variance"][0])) / 2
    assert float(excess(x.double(), ranges)[0]) == pytest.approx(expected)


def test_drawn_back_prefers_what_is_wrong_and_then_what_is_far(net: nn.Module, x: Tensor, y: Tensor):
    """Without ranges everything is inside: the farthest that is misclassified, else the farthest."""
    x_adv = pgd(net, x, y, norm="Linf", eps=0.2, steps=10).detach()
    found = drawn_back(net, x, y, x_adv, {})
    wrong = fooled(net, x_adv, y)
    assert wrong.any() and torch.equal(found[wrong], (x + 1.0 * (x_adv - x))[wrong])
    nowhere = drawn_back(net, x, y, x_adv, {"mean": (2.0, 3.0)})
    assert torch.equal(nowhere, x)


def test_a_query_attack_is_seen_and_different_images_are_not(net: nn.Module, x: Tensor, y: Tensor, digits: dict):
    """At a threshold of half of the least distance of clean images, as packages have it."""
    images = digits["test"].x[:420].astype(np.float32) / 255
    pictures = tiny_pictures(images)
    limit = QueryWindows().distances("clean", pictures[:220]).min() / 2
    assert not (QueryWindows().distances("other", pictures[220:]) <= limit).any()
    attack = partial(query_attack, net, x[:2], y[:2], norm="Linf", eps=0.05, queries=40)
    plain, disguised = attack(), attack(disguised=True)
    for own in plain.pictures:
        flags = QueryWindows().distances("attacker", own) <= limit
        assert len(own) <= 43 and flags[11:].mean() > 0.8
    seen = [(QueryWindows().distances("attacker", own) <= limit).mean() for own in disguised.pictures]
    assert np.mean(seen) < 0.5 and min(map(len, disguised.pictures)) > 20  # it does not stop at a lucky disguise
