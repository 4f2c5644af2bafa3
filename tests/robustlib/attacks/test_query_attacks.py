"""Attacks that only ask, on a model of two classes on the sides of a plane, where all is known: the gradient, and each
image's distance. And what they promise of their queries.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.hopskipjump import hopskipjump
from robustlib.attacks.spsa import AT_ONCE, Directions, estimate, normals, signs
from robustlib.inference.oracle import as_oracle
from robustlib.losses import margin
from robustlib.norms import dual_size, inside, size
from robustlib.rng import Draws

NORMS: list[Norm] = ["Linf", "L2"]
SHAPE = (1, 6, 6)
N = 20


class Plane(nn.Module):
    """Two classes; the second logit minus the first is 2 <w, x - 1/2>. shown: images it was asked about."""

    def __init__(self):
        super().__init__()
        self.w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        self.shown = 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        rise = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-rise, rise], 1)


class Labels(nn.Module):
    """Its class and no more."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(self.model(x).argmax(1), 2).float()


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def placed(plane: Plane) -> tuple[Tensor, Tensor, Tensor]:
    """Images far from the box, their classes, and <w, x - 1/2>, by turns on both sides."""
    x = 0.5 + 0.1 * (torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1)) - 0.5)
    rise = torch.linspace(0.3, 1.0, N) * (1 - 2 * (torch.arange(N) % 2))
    there = ((x - 0.5) * plane.w).flatten(1).sum(1)
    x = x + ((rise - there) / plane.w.square().sum())[:, None, None, None] * plane.w
    assert ((x > 0.2) & (x < 0.8)).all()
    return x, (rise > 0).long(), rise


def estimated(plane: Plane, x: Tensor, y: Tensor, directions: Directions, pairs: int, stream: str = "s") -> Tensor:
    """Of the margin, per unit of the image."""
    radius = 0.01
    draws = Draws(0, torch.arange(len(x)))
    return estimate(as_oracle(plane), x, y, margin, draws, stream, directions, pairs, radius) / (2 * radius)


@pytest.mark.slow
@pytest.mark.parametrize("directions", [signs, normals], ids=["spsa", "nes"])
def test_the_mean_estimate_is_the_gradient(directions: Directions, plane: Plane, placed):
    """The mean of u u^T is the identity, so that of u (u . g) is g; an entry strays by |g| over the root of the pairs."""
    x, y, _ = (rows[:4] for rows in placed)
    pairs = 10_000
    assert pairs * 2 * x[0].numel() < AT_ONCE
    gradient = 2 * (1 - 2 * y)[:, None, None, None] * plane.w
    found = estimated(plane, x, y, directions, pairs)
    stray = gradient.flatten(1).norm(dim=1) / pairs**0.5
    assert ((found - gradient).abs().flatten(1).amax(1) < 4.5 * stray).all()
    assert (F.cosine_similarity(found.flatten(1), gradient.flatten(1)) > 0.997).all()
    # It strays evenly around the gradient: more streams come nearer to it, by the root of their number.
    more = torch.stack([estimated(plane, x, y, directions, pairs, f"s{i}") for i in range(9)]).mean(0)
    assert ((more - gradient).abs().flatten(1).amax(1) < 4.5 * stray / 3).all()
    assert torch.equal(estimated(plane, x, y, directions, pairs), found)


def test_one_pair_of_spsa_is_its_direction_times_the_slope_along_it(plane: Plane, placed):
    x, y, _ = placed
    u = signs(Draws(0, torch.arange(N)), (1, *SHAPE), "s")[:, 0]
    gradient = 2 * (1 - 2 * y)[:, None, None, None] * plane.w
    along = (u * gradient).flatten(1).sum(1)
    torch.testing.assert_close(
        estimated(plane, x, y, signs, 1), along[:, None, None, None] * u, rtol=1e-3, atol=2e-3 * plane.w.norm().item()
    )


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "queries", "median", "most"), [("L2", 4000, 1.03, 1.06), ("Linf", 8000, 1.07, 1.12)])
def test_hopskipjump_comes_to_the_distance(norm: Norm, queries: int, median: float, most: float, plane: Plane, placed):
    """|<w, x - 1/2>| over the size of w in the dual norm, from above: within a few percent, and nearer with queries."""
    x, y, rise = placed
    exact = rise.abs() / dual_size(plane.w[None], norm)
    few, many = (
        size(hopskipjump(plane, x, y, norm=norm, queries=n) - x, norm) / exact for n in (queries // 8, queries)
    )
    assert (many >= 1 - 1e-4).all() and many.median() < median and many.max() < most
    assert few.median() > many.median() and (few >= 1 - 1e-4).all()


class Bright(nn.Module):
    """Class 1 where the mean of the pixels is above 0.75, which that of no noise is: 0.5, and 0.05 about it."""

    def forward(self, x: Tensor) -> Tensor:
        rise = x.flatten(1).mean(1) - 0.75
        return torch.stack([-rise, rise], 1)


def test_hopskipjump_begins_where_all_noise_is_of_one_class():
    x, y = torch.full((N, *SHAPE), 0.7), torch.zeros(N, dtype=torch.long)
    assert (Bright()(torch.rand(1000, *SHAPE, generator=torch.Generator().manual_seed(2))).argmax(1) == 0).all()
    x_adv = hopskipjump(Bright(), x, y, norm="L2", queries=1000)
    assert (Bright()(x_adv).argmax(1) == 1).all()
    assert size(x_adv - x, "L2").median() < 1.5 * 0.05 * 6  # 0.05 in each of 36 pixels is the least


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_hopskipjump_needs_no_more_than_labels(norm: Norm, plane: Plane, placed):
    x, y, _ = placed
    found = [hopskipjump(model, x, y, norm=norm, queries=600) for model in (plane, Labels(plane))]
    assert torch.equal(*found) and (size(found[0] - x, norm) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_hopskipjump_with_a_radius_ends_as_soon_as_it_is_in_it(norm: Norm, plane: Plane, placed):
    x, y, rise = placed
    exact = rise.abs() / dual_size(plane.w[None], norm)
    eps = 1.3 * exact.median().item()
    spent = torch.zeros(N, dtype=torch.int64)
    found = hopskipjump(plane, x, y, norm=norm, eps=eps, queries=4000, spent=spent)
    moved = size(found - x, norm)
    fell = plane(found).argmax(1) != y
    assert torch.equal(fell, moved > 0) and inside(found, x, eps, norm).all()
    assert fell[exact < 0.8 * eps].all() and not fell[exact > eps].any()
    assert spent[fell].max() < 4000 and (spent[exact > eps] > 3600).all()


BUDGETS: dict[str, list[int]] = {
    "spsa": [66, 67, 300, 1000],
    "nes": [52, 300, 1000],
    "hopskipjump": [38, 100, 119, 300, 1000],
    "noise": [1, 2, 300],
    "square": [1, 2, 300],
    "transfer": [1, 5, 50],
}
Attack = Callable[..., Tensor]


def bounded(name: str, norm: Norm, eps: float, queries: int) -> Attack:
    options: dict[str, Any] = {"norm": norm, "eps": eps, "queries": queries}
    if name == "transfer":
        tilted = Plane()
        tilted.w = tilted.w.roll(1, -1) + 2 * tilted.w
        options["surrogate"] = tilted
    return partial(ATTACKS[name], **options)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "queries"), [(name, n) for name in BUDGETS for n in BUDGETS[name]])
def test_queries_box_and_ball_hold(name: str, queries: int, norm: Norm, plane: Plane, placed):
    """What is said to be spent is what the model saw, never above the budget; in a batch as alone."""
    x, y, rise = placed
    y = torch.where(torch.arange(N) < 2, 1 - y, y)  # two are misclassified as they are
    eps = 1.5 * (rise.abs() / dual_size(plane.w[None], norm)).median().item()
    attack, spent = bounded(name, norm, eps, queries), torch.zeros(N, dtype=torch.int64)
    found = attack(plane, x, y, draws=Draws(0, torch.arange(N)), spent=spent)
    assert inside(found, x, eps, norm).all() and found.shape == x.shape
    assert spent.max() <= queries and spent.min() >= 1
    # Square does not ask about squares that change nothing.
    assert plane.shown == spent.sum() if name != "square" else plane.shown <= spent.sum()
    for i in (0, 1, 7, N - 1):
        before, own = plane.shown, torch.zeros(1, dtype=torch.int64)
        alone = attack(plane, x[i : i + 1], y[i : i + 1], draws=Draws(0, torch.tensor([i])), spent=own)
        torch.testing.assert_close(alone[0], found[i], rtol=0, atol=1e-5)
        assert own == spent[i]
        assert plane.shown - before == own if name != "square" else plane.shown - before <= own


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", BUDGETS)
def test_at_the_corners_of_the_box_it_holds_too(name: str, norm: Norm, plane: Plane):
    x = (torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    y = plane(x).argmax(1)
    found = bounded(name, norm, 0.3, 200)(plane, x, y)
    assert inside(found, x, 0.3, norm).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_what_is_estimated_is_climbed(name: str, plane: Plane, placed):
    """With the margin or the cross-entropy, whose gradients point alike here: what is within reach falls."""
    x, y, rise = placed
    for norm in NORMS:
        exact = rise.abs() / dual_size(plane.w[None], norm)
        eps = exact.median().item()
        for loss in ("margin", "ce"):
            found = ATTACKS[name](plane, x, y, norm=norm, eps=eps, queries=6000, samples=200, loss=loss)
            fell = plane(found).argmax(1) != y
            assert fell[exact < 0.85 * eps].all() and not fell[exact > eps * 1.001].any()
