"""norms.py against slow twins, one number at a time in float64, and against what defines a projection or a dual."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from robustlib import norms
from robustlib.arguments import Norm
from robustlib.norms import ascent, draw_in_ball, dual_size, either, inside, per_example, project, size
from robustlib.rng import Draws

NORMS: list[Norm] = ["Linf", "L2"]
SHAPE = (50, 3, 4, 5)


@pytest.fixture
def delta() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slow_size(values: list[float], norm: Norm) -> float:
    return max(abs(v) for v in values) if norm == "Linf" else math.sqrt(math.fsum(v * v for v in values))


def slow_dual_size(values: list[float], norm: Norm) -> float:
    return math.fsum(abs(v) for v in values) if norm == "Linf" else slow_size(values, "L2")


def slow_project(values: list[float], eps: float, norm: Norm) -> list[float]:
    if norm == "Linf":
        return [min(max(v, -eps), eps) for v in values]
    shrink = min(1.0, eps / slow_size(values, "L2"))
    return [v * shrink for v in values]


def rows(tensor: Tensor) -> list[list[float]]:
    return tensor.flatten(1).tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_match_the_slow_twins(norm: Norm, delta: Tensor):
    torch.testing.assert_close(size(delta, norm).tolist(), [slow_size(row, norm) for row in rows(delta)])
    torch.testing.assert_close(dual_size(delta, norm).tolist(), [slow_dual_size(row, norm) for row in rows(delta)])


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 7.7])  # for L2, 7.7 cuts some of the examples and leaves others
def test_project_matches_the_slow_twin_and_is_idempotent(norm: Norm, eps: float, delta: Tensor):
    projected = project(delta, eps, norm)
    torch.testing.assert_close(rows(projected), [slow_project(row, eps, norm) for row in rows(delta)])
    torch.testing.assert_close(project(projected, eps, norm), projected, rtol=1e-15, atol=0)
    within = size(delta, norm) <= eps
    assert torch.equal(projected[within], delta[within])
    assert torch.equal(project(torch.zeros_like(delta), eps, norm), torch.zeros_like(delta))


@pytest.mark.parametrize("norm", NORMS)
def test_project_gives_the_nearest_point(norm: Norm, delta: Tensor):
    """p is the point of a convex set nearest to d exactly if <d - p, z - p> <= 0 for every z of the set."""
    eps = 0.8
    nearest = project(delta, eps, norm)
    assert (size(nearest, norm) < size(delta, norm)).all()
    for seed in range(20):
        other = draw_in_ball(delta, eps, norm, Draws(seed, torch.arange(len(delta))), "other")
        assert (((delta - nearest) * (other - nearest)).flatten(1).sum(1) <= 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_is_the_unit_step_that_attains_the_dual(norm: Norm, delta: Tensor):
    step = ascent(delta, norm)
    torch.testing.assert_close(size(step, norm), torch.ones(len(delta), dtype=torch.float64))
    torch.testing.assert_close((step * delta).flatten(1).sum(1), dual_size(delta, norm))
    assert torch.equal(ascent(torch.zeros_like(delta), norm), torch.zeros_like(delta))


def test_per_example_multiplies_example_by_example(delta: Tensor):
    scaled = delta * per_example(torch.arange(50.0), delta)
    assert all(torch.equal(scaled[i], delta[i] * i) for i in range(50))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.25, 1.5])
def test_draws_fill_the_ball_evenly(norm: Norm, eps: float):
    """Of a point uniform in a d-dimensional ball of either norm, (size / eps)^d is uniform in [0, 1]."""
    like, draws = torch.zeros(20000, 1, 2, 3), Draws(0, torch.arange(20000))
    points = draw_in_ball(like, eps, norm, draws, "start").double()
    share = size(points, norm) / eps
    assert points.shape == like.shape and share.max() <= 1 + 1e-6
    assert kstest((share**6).numpy(), "uniform").pvalue > 1e-3
    flat = points.flatten(1) / eps
    assert flat.mean(0).abs().max() < 4 / math.sqrt(20000)
    # The variance of a coordinate is 1/3 in a cube and 1/(d + 2) in a ball; different coordinates do not correlate.
    expected = torch.eye(6, dtype=torch.float64) * (1 / 3 if norm == "Linf" else 1 / 8)
    torch.testing.assert_close(flat.T @ flat / 20000, expected, rtol=0, atol=4 / math.sqrt(20000) / 3)
    if norm == "Linf":
        assert kstest(flat.flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("norm", NORMS)
def test_draws_in_a_ball_of_radius_zero_are_zero_and_keep_the_dtype(norm: Norm):
    point = draw_in_ball(torch.ones(5, 1, 2, 2, dtype=torch.float64), 0.0, norm, Draws(0, torch.arange(5)), "start")
    assert torch.equal(point, torch.zeros(5, 1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_inside_checks_the_ball_and_the_box(norm: Norm):
    x = torch.full((6, 1, 2, 2), 0.5)
    x_adv, eps = x.clone(), 0.25
    x_adv[1, 0, 0, 0] += 0.25  # on the sphere
    x_adv[2, 0, 0, 0] += 0.25 * (1 + 3e-5)  # just outside
    x_adv[3] += 0.2  # Linf 0.2, L2 0.4
    x_adv[4, 0, 1, 1] = float("nan")
    assert inside(x_adv, x, eps, norm).tolist() == [True, True, False, norm == "Linf", False, True]
    edge = torch.tensor([0.0, 1.0, -1e-6, 1 + 1e-6]).reshape(4, 1, 1, 1)
    assert inside(edge, edge, math.inf, norm).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "call",
    [
        lambda d, norm: size(d, norm),
        lambda d, norm: dual_size(d, norm),
        lambda d, norm: project(d, 1.0, norm),
        lambda d, norm: ascent(d, norm),
        lambda d, norm: draw_in_ball(d, 1.0, norm, Draws(0, torch.arange(50)), "start"),
        lambda d, norm: inside(d, d, 1.0, norm),
    ],
    ids=["size", "dual_size", "project", "ascent", "draw_in_ball", "inside"],
)
def test_unknown_norm(call, delta: Tensor):
    with pytest.raises(ValueError, match=r"^unknown norm 'L3', expected one of: Linf, L2, L1$"):
        call(delta, "L3")


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("rows", [[], [3], [0, 1, 2, 4, 5, 6], list(range(7))])
def test_either_is_torch_where_by_rows(rows: list[int], looks: bool, monkeypatch: pytest.MonkeyPatch):
    """To the bit, also of NaN and of zeros with a sign, and neither is written into."""
    monkeypatch.setattr(norms, "looks", lambda tensor: looks)
    one, other = torch.randn(7, 2, 3), torch.randn(7, 2, 3)
    one[0, 0, 0], other[3, 0, 0], one[1, 0, 0], other[1, 0, 1] = torch.nan, torch.nan, -0.0, -0.0
    mask = torch.zeros(7, dtype=torch.bool)
    mask[rows] = True
    before, expected = (one.clone(), other.clone()), torch.where(per_example(mask, one), one, other)
    found = either(mask, one, other)
    for a, b in ((found, expected), (one, before[0]), (other, before[1])):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
