"""Proofs against closed forms, a dense grid, and bounds written down slowly in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks.pgd import pgd
from robustlib.bounds.layers import Interval
from robustlib.bounds.lines import Lines
from robustlib.bounds.network import Network
from robustlib.bounds.proofs import MOST_LINES, Prover
from robustlib.bounds.traced_network import network_of
from robustlib.models.lenet5 import LeNet5
from robustlib.rng import Draws

pytestmark = pytest.mark.slow


def linear(pixels: int = 12, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).eval()


def mlp(pixels: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    with torch.no_grad():
        for layer in (each for each in layers if isinstance(each, nn.Linear)):
            layer.weight.mul_(2)
    return layers.eval()


def worst_margin(model: nn.Sequential, x: Tensor, y: int, eps: float) -> float:
    """Of a linear model, exactly: every pixel goes as far as the ball and the box let it."""
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight.double(), layer.bias.double()
    least, most = (x - eps).clamp(0, 1).flatten().double(), (x + eps).clamp(0, 1).flatten().double()
    found = []
    for other in range(len(bias)):
        if other != y:
            line = weight[y] - weight[other]
            found.append((torch.where(line > 0, line * least, line * most).sum() + bias[y] - bias[other]).item())
    return min(found)


def test_a_linear_model_is_proved_up_to_its_distance():
    model, x = linear(), torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    y = int(model(x).argmax())
    prover = Prover(network_of(model, x))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if worst_margin(model, x, y, middle) > 0 else (low, middle)
    assert 0.01 < low < 0.9
    assert prover.proof(x, y, 0.995 * low).holds and not prover.proof(x, y, 1.001 * low).holds
    assert not prover.proof(x, (y + 1) % 3, 0.0).holds  # a class that it is not


@pytest.mark.parametrize("seed", range(6))
def test_no_proof_where_a_grid_finds_an_error(seed: int):
    model = mlp(2, seed)
    x = torch.rand(1, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    y, steps = int(model(x).argmax()), torch.linspace(-1, 1, 201)
    grid = torch.cartesian_prod(steps, steps).reshape(-1, 1, 1, 2)
    rough, fine = (Prover(network_of(model, x), refined=refined) for refined in (False, True))
    held = []
    for eps in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3):
        stands = bool((model((x + eps * grid).clamp(0, 1)).argmax(1) == y).all())
        proofs = [prover.proof(x, y, eps).holds for prover in (rough, fine)]
        assert stands or not any(proofs)
        assert proofs[1] or not proofs[0]  # refined, it proves whatever it does without
        held.append((proofs[1], stands))
    assert held[0][0] >= held[0][1]  # in a small ball the network is nearly linear
    assert sorted(held, reverse=True) == held  # and no larger ball is proved where a smaller one is not


def test_an_image_of_the_only_class_stands():
    model, x = linear(classes=1), torch.rand(2, 3, 2, 2)
    assert Prover(network_of(model, x)).proof(x[:1], 0, 1.0).holds


def cancelling(seed: int) -> nn.Sequential:
    """What two halves share is a million times what they differ by, which is all that is left of it."""
    torch.manual_seed(seed)
    first, second = nn.Linear(16, 32, bias=False), nn.Linear(32, 3, bias=False)
    large, last = torch.rand(16, 16) * 1e6, torch.randn(3, 16)
    with torch.no_grad():
        first.weight.copy_(torch.cat([large, large + torch.randn(16, 16)]))
        second.weight.copy_(torch.cat([last, -last], 1))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval()


@pytest.mark.parametrize("eps", [0.0, 0.001, 0.01])
def test_no_proof_where_rounding_decides(eps: float):
    draw = torch.Generator().manual_seed(0)
    for seed in range(10):
        model, x = cancelling(seed), torch.rand(1, 1, 4, 4, generator=draw)
        y = int(model(x).argmax())
        near = (x + eps * (2 * torch.rand(2000, 1, 4, 4, generator=draw) - 1)).clamp(0, 1)
        stands = bool((model(near).argmax(1) == y).all())
        assert stands or not Prover(network_of(model, x)).proof(x, y, eps).holds


def test_margins_of_many_classes_take_little_memory(monkeypatch: pytest.MonkeyPatch):
    model, x = linear(classes=1000), torch.rand(2, 3, 2, 2)
    network, y = network_of(model, x), int(model(x)[0].argmax())
    rows, back = list[int](), Network.lines_back

    def counted(self: Network, lines: Lines, *how: Any) -> tuple[Tensor, Tensor]:
        rows.append(len(lines.weights))
        return back(self, lines, *how)

    monkeypatch.setattr(Network, "lines_back", counted)
    intervals = network.intervals(Interval((x[:1] - 0.01).clamp(0, 1), (x[:1] + 0.01).clamp(0, 1)))
    found = Prover(network).margins(y, intervals)
    assert found == pytest.approx(worst_margin(model, x[:1], y, 0.01), abs=1e-3)
    assert sum(rows) == 999 and max(rows) <= MOST_LINES


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.again = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.fc(torch.relu(self.norm(self.again(x)) + x).flatten(1))


@pytest.mark.parametrize("kind", [LeNet5, Residual])
def test_bounds_hold_for_random_and_attacked_images(kind: type[nn.Module]):
    torch.manual_seed(3)
    model = (kind(1, 5, (8, 8)) if kind is LeNet5 else kind()).eval()  # pyright: ignore[reportCallIssue]
    x, eps = torch.rand(1, 1, 8, 8), 0.05
    network = network_of(model, x)
    images = Interval((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    rough, known = network.intervals(images), {}
    prover, refined = Prover(network), rough
    for place in network.before_relus:
        known[place], _ = prover.tightened(place, refined)
        refined = network.intervals(images, known)
    points = images.lower + torch.rand(10_000, 1, 8, 8) * (images.upper - images.lower)
    corners = torch.where(torch.rand(2_000, 1, 8, 8) < 0.5, images.lower, images.upper)
    y = model(x).argmax(1).repeat(64)
    attacked = pgd(model, x.repeat(64, 1, 1, 1), y, eps=eps, draws=Draws(0, torch.arange(64)))
    inside = torch.cat([points, corners, attacked])
    logits = model(inside)
    margins = (logits.gather(1, y[:1].expand(len(inside), 1)) - logits)[:, [c for c in range(5) if c != y[0]]]
    for intervals in (rough, refined):
        assert (logits >= intervals[-1].lower).all() and (logits <= intervals[-1].upper).all()
        assert margins.min() >= prover.margins(int(y[0]), intervals)
    widths = [float((each[-1].upper - each[-1].lower).mean()) for each in (rough, refined)]
    assert widths[1] < widths[0]
    assert prover.margins(int(y[0]), refined) > prover.margins(int(y[0]), rough)


def test_bounds_are_those_of_float64_written_down_slowly():
    model = mlp(9, 4)
    x, eps = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(5)), 0.06
    y = int(model(x).argmax())
    network = network_of(model, x)
    images = Interval((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
    prover, known, intervals = Prover(network), {}, network.intervals(images)
    for place in network.before_relus:
        known[place], _ = prover.tightened(place, intervals)
        intervals = network.intervals(images, known)
    slow = Slow(model, *(each.double().numpy().ravel() for each in images))
    for place, (lower, upper) in zip(network.before_relus, slow.before_relus, strict=True):
        assert np.allclose(intervals[place].lower[0], lower, atol=1e-3)
        assert np.allclose(intervals[place].upper[0], upper, atol=1e-3)
        assert (intervals[place].lower[0].numpy() <= lower).all() and (intervals[place].upper[0].numpy() >= upper).all()
    exact = slow.margin(y)
    assert exact - 2e-2 < prover.margins(y, intervals) < exact


class Slow:
    """CROWN's bounds of three linear layers with ReLU between, in float64, one number after the other."""

    def __init__(self, model: nn.Sequential, least: np.ndarray, most: np.ndarray):
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        self.weights = [layer.weight.detach().double().numpy() for layer in layers]
        self.biases = [layer.bias.detach().double().numpy() for layer in layers]
        self.least, self.most = least, most
        self.before_relus: list[tuple[np.ndarray, np.ndarray]] = []
        box = (least, most)
        for depth in range(2):
            lower, upper = self.by_intervals(depth, box)
            for unit in range(len(lower)):
                if lower[unit] < 0 < upper[unit]:
                    row = np.eye(len(lower))[unit]
                    lower[unit] = max(lower[unit], self.back(row, depth, parallel=True))
                    upper[unit] = min(upper[unit], -self.back(-row, depth, parallel=True))
            self.before_relus.append((lower, upper))
            box = (lower.clip(0), upper.clip(0))

    def by_intervals(self, depth: int, box: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        positive, negative = self.weights[depth].clip(0), self.weights[depth].clip(None, 0)
        bias = self.biases[depth]
        return positive @ box[0] + negative @ box[1] + bias, positive @ box[1] + negative @ box[0] + bias

    def back(self, row: np.ndarray, depth: int, *, parallel: bool) -> float:
        """The least value of a linear function of what layer `depth` gives out."""
        constant = 0.0
        for at in range(depth, -1, -1):
            constant += float(row @ self.biases[at])
            row = row @ self.weights[at]
            if at == 0:
                break
            lower, upper = self.before_relus[at - 1]
            new = np.zeros_like(row)
            for unit, weight in enumerate(row):
                low, high = lower[unit], upper[unit]
                if low >= 0:
                    new[unit] = weight
                elif high > 0:
                    slope = high / (high - low)
                    if weight < 0:
                        new[unit] = weight * slope
                        constant += weight * -slope * low
                    else:
                        new[unit] = weight * (slope if parallel else float(high > -low))
            row = new
        return constant + float(np.where(row > 0, row * self.least, row * self.most).sum())

    def margin(self, y: int) -> float:
        classes = np.eye(3)
        return min(self.back(classes[y] - classes[c], 2, parallel=False) for c in range(3) if c != y)


def test_products_are_counted():
    model, x = mlp(2), torch.rand(1, 1, 1, 2)
    network = network_of(model, x)
    assert [network.products_back(place) for place in range(len(network.nodes))] == [0, 0, 24, 24, 144, 144, 174]
    margins = 4 * 174  # a line for each of two other classes and two passes of intervals
    assert Prover(network).most_products == 12 * 24 + 10 * 144 + 3 * margins
    assert Prover(network, refined=False).most_products == margins
    y = int(model(x).argmax())
    assert Prover(network).proof(x, y, 0.0) == (True, margins)
    found = Prover(network).proof(x, (y + 1) % 3, 0.0)  # no sign is open in a ball without a radius
    assert not found.holds and found.products <= Prover(network).most_products
