"""DeepFool on a linear model of several classes, where one step reaches the nearest boundary exactly."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks.deepfool import deepfool, gaps
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.oracle import as_oracle
from robustlib.inference.predict import correct
from robustlib.norms import size

Norm = Literal["Linf", "L2"]
NORMS: list[Norm] = ["Linf", "L2"]
CLASSES = 5


class Linear(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture(scope="module")
def linear() -> Linear:
    weight = torch.randn(CLASSES, 48, generator=torch.Generator().manual_seed(0))
    return Linear(weight, -0.5 * weight.sum(1))


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Images 0.15 away from the box, which the steps then never meet."""
    return 0.15 + 0.7 * torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def exact_distance(model: Linear, x: Tensor, norm: Norm) -> list[float]:
    """min over k of (f_y - f_k) / ||w_y - w_k|| in the dual norm, one example and one class at a time."""
    weight, distances = model.weight.detach().double(), []
    for row in x.double().flatten(1) @ weight.T + model.bias.detach().double():
        y = int(row.argmax())
        order = 1 if norm == "Linf" else 2
        gaps = [
            ((row[y] - row[k]) / torch.linalg.vector_norm(weight[y] - weight[k], order)).item()
            for k in range(CLASSES)
            if k != y
        ]
        distances.append(min(gaps))
    return distances


@pytest.mark.parametrize("norm", NORMS)
def test_distance_is_the_exact_one_times_the_overshoot(norm: Norm, linear: Linear, x: Tensor):
    y = linear(x).argmax(1)
    x_adv = deepfool(linear, x, y, norm=norm)
    delta = (x_adv - x).double().flatten(1)
    found = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    exact = torch.tensor(exact_distance(linear, x, norm), dtype=torch.float64)
    assert not correct(linear, x_adv, y).any()
    # One step of the distance plus the 1e-4 that carries over the boundary, times 1.02.
    torch.testing.assert_close(found, 1.02 * (exact + 1e-4), rtol=1e-4, atol=1e-6)
    far = exact > 0.02
    assert far.sum() > 50
    assert (found[far] / exact[far]).max() < 1.026 and (found / exact).min() > 1.02


@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_keeps_what_lies_within_it_and_returns_the_rest(norm: Norm, linear: Linear, x: Tensor):
    y = linear(x).argmax(1)
    distance = 1.02 * (torch.tensor(exact_distance(linear, x, norm)) + 1e-4)
    eps = distance.median().item()
    free, bounded = deepfool(linear, x, y, norm=norm), deepfool(linear, x, y, norm=norm, eps=eps)
    near, far = distance < eps * 0.999, distance > eps * 1.001
    assert torch.equal(bounded[near], free[near]) and torch.equal(bounded[far], x[far])
    assert not correct(linear, bounded[near], y[near]).any()


def test_misclassified_images_are_returned_as_they_are(linear: Linear, x: Tensor):
    predicted = linear(x).argmax(1)
    y = torch.where(torch.arange(200) % 2 == 0, predicted, (predicted + 1) % CLASSES)
    x_adv = deepfool(linear, x, y)
    assert torch.equal(x_adv[1::2], x[1::2])
    assert (x_adv[::2] != x[::2]).flatten(1).any(1).all()


def test_only_the_classes_ranked_first_are_tried(linear: Linear, x: Tensor):
    """With two classes the runner-up's boundary is taken, whether or not it is the nearest."""
    y, weight = linear(x).argmax(1), linear.weight.detach()
    top = linear(x).detach().topk(2, dim=1)
    to_second = (top.values[:, 0] - top.values[:, 1]) / (weight[top.indices[:, 0]] - weight[top.indices[:, 1]]).norm(
        dim=1
    )
    found = (deepfool(linear, x, y, classes=2) - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, 1.02 * (to_second + 1e-4), rtol=1e-4, atol=1e-6)
    assert (to_second > torch.tensor(exact_distance(linear, x, "L2")) * 1.001).any()


def test_gradients_of_the_gaps_are_differences_of_rows_of_the_jacobian(net: nn.Module, test):
    x, ranked = test[0][:5], torch.tensor([[3, 0, 9]]).repeat(5, 1)
    torch.testing.assert_close(gaps(net(x), ranked), net(x)[:, [0, 9]] - net(x)[:, [3]])
    gradients = as_oracle(net).gradients(x, gaps, ranked)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda image: net(image)[0], x[i : i + 1])  # (10, 1, 1, 8, 8)
        assert isinstance(jacobian, Tensor)
        torch.testing.assert_close(gradients[i], jacobian[[0, 9], 0] - jacobian[3, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_in_half_precision_find_the_same_boundaries(norm: Norm, net: nn.Module, test):
    """As near, and beyond the network's own boundary. Rounding may turn a path to another piece of it, for few images."""
    x, y = test
    replicas = make_replicas(net, x[:64], half=True)
    assert replicas.search.precision == torch.bfloat16 and replicas.fine.in_half is replicas.search
    expected = size(deepfool(net, x, y, norm=norm) - x, norm)
    x_adv = deepfool(replicas.for_radius(None), x, y, norm=norm)
    assert not correct(net, x_adv, y).any()
    found = size(x_adv - x, norm)[expected > 0] / expected[expected > 0]
    assert ((found - 1).abs() < 0.05).float().mean() > 0.95 and (found - 1).abs().median() < 0.003
    assert found.mean().item() == pytest.approx(1, abs=0.005)
    assert replicas.search.count.gradients > 0 == replicas.fine.count.gradients


@pytest.mark.parametrize("norm", NORMS)
def test_breaks_every_digit_of_a_trained_network(norm: Norm, net: nn.Module, test):
    x, y = test
    x_adv = deepfool(net, x, y, norm=norm)
    assert not correct(net, x_adv, y).any()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


def test_a_flat_model_gives_no_nan():
    """Every gradient is zero: the attack fails, and says so with the finite image it started from."""
    model = Linear(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 0.0]))
    x = torch.full((2, 1, 2, 2), 0.5)
    assert torch.equal(deepfool(model, x, torch.zeros(2, dtype=torch.long)), x)
