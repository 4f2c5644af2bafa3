"""Each layer's intervals and lines, against what it gives out for many points between."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.bounds.layers import Interval, Layer
from robustlib.bounds.lines import Lines, flat_rows
from robustlib.bounds.traced_network import network_of

LAYERS = {
    "convolution": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "even kernel": nn.Conv2d(4, 2, 4, stride=3),
    "dilated": nn.Conv2d(4, 4, (2, 3), padding=(1, 0), dilation=2, bias=False),
    "grouped": nn.Conv2d(4, 8, 3, groups=2),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(4 * 7 * 6, 5)),
    "norm": nn.BatchNorm2d(4),
    "relu": nn.ReLU(),
    "max-pool": nn.MaxPool2d(2),
    "max-pool that overlaps": nn.MaxPool2d(3, 2, 1),
    "average": nn.AvgPool2d(2),
    "average that overlaps": nn.AvgPool2d(3, 1, 1),
    "average of all": nn.AdaptiveAvgPool2d(1),
    "average by rows": nn.AdaptiveAvgPool2d((7, 2)),
}
ROUNDED = ("relu", "max-pool", "max-pool that overlaps")  # those that are not affine


def made(layer: nn.Module) -> tuple[Layer, nn.Module, Interval]:
    """The layer read from a model of it alone, with an interval of its input."""
    torch.manual_seed(0)
    layer = (layer if isinstance(layer, nn.Sequential) else nn.Sequential(layer)).eval()
    for norm in (each for each in layer.modules() if isinstance(each, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        for values in (norm.running_mean, norm.weight.data, norm.bias.data):
            values.normal_()
        norm.running_var.uniform_(0.5, 2)
    lower = torch.randn(1, 4, 7, 6)
    interval = Interval(lower, lower + torch.rand(lower.shape))
    network = network_of(layer, lower.repeat(2, 1, 1, 1))
    assert len(network.nodes) in (2, 3)
    if len(network.nodes) == 3:  # flattened before
        node = network.nodes[1].layer
        assert node is not None
        interval = node.forward(interval)
        layer = layer[1:]
    last = network.nodes[-1].layer
    assert last is not None
    return last, layer, interval


def points_of(interval: Interval) -> Tensor:
    """Points between, many of them corners."""
    share = torch.rand(400, *interval.lower.shape[1:])
    share[:200] = share[:200].round()
    return interval.lower + share * (interval.upper - interval.lower)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_lie_in_the_interval(name: str):
    layer, model, interval = made(LAYERS[name])
    x, found = points_of(interval), layer.forward(interval)
    given = model(x)
    assert torch.allclose(layer.value(x), given, atol=1e-5)
    assert (given >= found.lower).all() and (given <= found.upper).all()


@pytest.mark.parametrize("name", LAYERS)
def test_intervals_are_no_wider_than_outputs(name: str):
    layer, _, interval = made(LAYERS[name])
    found = layer.forward(interval)
    # By the corner at which the first output is the largest, which its gradient in the middle of the interval points to.
    x = ((interval.lower + interval.upper) / 2).requires_grad_()
    (slope,) = torch.autograd.grad(layer.value(x).flatten()[0], x)
    high, low = torch.where(slope > 0, interval.upper, interval.lower), torch.where(slope > 0, *interval)
    if name in ROUNDED:  # these rise with every input
        high, low = interval.upper, interval.lower
    ends = [layer.value(each).flatten()[0].item() for each in (low, high)]
    assert [each.flatten()[0].item() for each in found] == pytest.approx(ends, abs=2e-3)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_lines_hold_for_outputs(name: str, one_sided: bool):
    layer, model, interval = made(LAYERS[name])
    x = points_of(interval)
    given = model(x)
    weights = torch.randn(5, *given.shape[1:])
    lines = Lines.begin(weights, one_sided=one_sided)
    (back,) = layer.back(lines, interval)
    assert back.shape == (5, *x.shape[1:])
    line = flat_rows(x) @ flat_rows(back).T
    exact = flat_rows(given) @ flat_rows(weights).T
    slack = 1e-5 * (1 + lines.size)
    assert (exact >= line + lines.lower - slack).all()
    if not one_sided:
        assert (exact <= line + lines.upper + slack).all()
    if name not in ROUNDED:
        assert torch.allclose(line + lines.lower, exact, atol=1e-4)  # affine: the same


def test_relu_of_known_sign_is_exact():
    layer, _, _ = made(nn.ReLU())
    interval = Interval(torch.tensor([[1.0, -2.0, -1.0]]), torch.tensor([[2.0, -1.0, 3.0]]))
    for one_sided, expected in ((False, [1.0, 0.0, 0.75]), (True, [1.0, 0.0, 1.0])):
        lines = Lines.begin(torch.eye(3), one_sided=one_sided)
        (back,) = layer.back(lines, interval)
        assert back.diagonal().tolist() == expected
        assert lines.lower.tolist() == [0, 0, 0]
        assert lines.upper.tolist() == [0, 0, 0.75 * (not one_sided)]


def test_pool_with_a_pixel_above_the_others_is_exact():
    layer, _, _ = made(nn.MaxPool2d(2, 2))
    lower = torch.zeros(1, 4, 7, 6)
    lower[:, :, ::2, ::2] = 1  # of each window the first, whose least value is above the greatest of the others
    lines = Lines.begin(torch.ones(1, 4, 3, 3))
    (back,) = layer.back(lines, Interval(lower, lower + 0.5))
    expected = torch.zeros(1, 4, 7, 6)
    expected[:, :, :6:2, ::2] = 1
    assert torch.equal(back, expected) and lines.upper.item() == lines.lower.item() == 0


def test_pool_of_numbers_beyond_float32_says_nothing():
    layer, _, interval = made(nn.MaxPool2d(3, 2, 1))  # whose first windows begin beyond the edge
    everything = Interval(*(torch.full_like(interval.lower, end) for end in (-torch.inf, torch.inf)))
    lines = Lines.begin(torch.ones(1, 4, 4, 3))
    layer.back(lines, everything)
    assert not lines.upper.isfinite() and not lines.lower > 0


def test_bounds_are_widened_by_what_they_are_made_of():
    lines = Lines.begin(torch.tensor([[1.0, -1.0]]))
    lines.widen(torch.tensor([[2.0**15, 2.0**14]]))
    lines.add(torch.tensor([3.0]))
    assert [bound.item() for bound in lines.bounds()] == [1.5, 4.5]
