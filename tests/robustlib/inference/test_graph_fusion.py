"""Convolutions that take the ReLU after them along: which do, which are left alone, and what is said where none can."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.cudnn_layers import ConvRelu
from robustlib.inference.folded_layers import Normalized, refresh
from robustlib.inference.graph_fusion import fuse
from robustlib.inference.graph_rewriting import fold
from robustlib.models import build

Body = Callable[[Any, Tensor], Tensor]


class Block(nn.Module):
    """Some layers, called as a function of them says."""

    def __init__(self, body: Body, **layers: Any):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, **layers)
        self.other, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.in_place, self.pool = nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x).flatten(1)


BODIES: dict[str, Body] = {
    "F.relu": lambda m, x: F.relu(m.conv(x)),
    "F.relu in place": lambda m, x: F.relu(m.conv(x), inplace=True),
    "nn.ReLU": lambda m, x: m.relu(m.conv(x)),
    "nn.ReLU in place": lambda m, x: m.in_place(m.conv(x)),
    "method": lambda m, x: m.conv(x).relu(),
    "method in place": lambda m, x: m.conv(x).relu_(),
    "BatchNorm": lambda m, x: m.relu(m.norm(m.conv(x))),
    "+": lambda m, x: torch.relu(m.conv(x) + x),
    "+ of the other order": lambda m, x: torch.relu(x + m.conv(x)),
    "torch.add": lambda m, x: m.relu(torch.add(x, m.conv(x))),
    "method add": lambda m, x: m.relu(m.conv(x).add(x)),
    "iadd": lambda m, x: m.in_place(operator.iadd(m.conv(x), x)),
    "add_": lambda m, x: m.in_place(m.conv(x).add_(x)),
    "shortcut": lambda m, x: m.in_place(m.norm(m.conv(x)) + m.other(x)),
    "before a pool": lambda m, x: m.pool(m.relu(m.conv(x))),
    "before a pool that is ReLU's last": lambda m, x: m.relu(m.pool(m.conv(x))),
    "before a pool by two": lambda m, x: F.max_pool2d(m.relu(m.conv(x)), 2),
    "its weights used elsewhere": lambda m, x: m.relu(m.conv(x)) * m.conv.weight.mean(),
}
LEFT_ALONE: dict[str, Body] = {
    "used before ReLU": lambda m, x: (y := m.conv(x)).relu() + y,
    "the sum used before ReLU": lambda m, x: (y := m.conv(x) + x).relu() + y,
    "scaled": lambda m, x: torch.add(x, m.conv(x), alpha=2).relu(),
    "a number added": lambda m, x: (m.conv(x) + 1).relu(),
    "added to itself": lambda m, x: ((y := m.conv(x)) + y).relu(),
    "into another tensor": lambda m, x: (z := x * 1).add_(m.conv(x)).relu() + z,
    "another activation": lambda m, x: m.conv(x).sigmoid().relu(),
    "average": lambda m, x: F.avg_pool2d(m.conv(x), 2).relu(),
}
OTHER_CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding_mode": "reflect"},
    {"groups": 4},
]


def fused(net: nn.Module) -> tuple[nn.Module, int]:
    found = fold(copy.deepcopy(net))
    return found, fuse(found)


def compare(found: nn.Module, net: nn.Module, shape: tuple[int, ...] = (3, 4, 8, 8)) -> None:
    x = torch.randn(shape, dtype=next(net.parameters()).dtype, requires_grad=True)
    expected, came = net(x), found(x)
    into = torch.randn_like(expected)
    torch.testing.assert_close(came, expected)
    torch.testing.assert_close(torch.autograd.grad(came, x, into), torch.autograd.grad(expected, x, into))


def block(body: Body, **layers: Any) -> nn.Module:
    torch.manual_seed(0)
    net = Block(body, **layers).double().eval().requires_grad_(False)
    net.norm.running_mean, net.norm.running_var = torch.randn(4).double(), torch.rand(4).double() + 0.5
    return net


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_a_convolution_takes_its_relu_along(name: str):
    net = block(BODIES[name])
    found, count = fused(net)
    layers = [layer for layer in found.modules() if isinstance(layer, ConvRelu)]
    assert count == len(layers) == 1 and layers[0].masked == ("pool" not in name)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in found.modules())
    compare(found, net)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_another_node_uses_is_left_alone(name: str):
    found, count = fused(net := block(LEFT_ALONE[name]))
    assert count == 0
    compare(found, net)


@pytest.mark.parametrize("layers", OTHER_CONVOLUTIONS, ids=str)
def test_convolutions_that_cudnn_does_not_fuse_are_left_alone(layers: dict[str, Any]):
    found, count = fused(net := block(BODIES["F.relu"], **layers))
    assert count == 0
    compare(found, net)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("padding, kernel, fuses", [("same", 3, True), ("same", (3, 4), False), ("valid", 3, True)])
def test_padding_in_words(padding: str, kernel: Any, fuses: bool):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 5, kernel, padding=padding), nn.ReLU(), nn.Flatten()).double()
    found, count = fused(net.eval())
    assert count == fuses
    compare(found, net)


@pytest.mark.slow
def test_all_convolutions_of_a_residual_network_but_shortcuts_are_fused():
    """17 of 20; and the fused form follows the weights, as the folded one does."""
    torch.manual_seed(0)
    net = build(arch="resnet18", in_channels=3, num_classes=7, image_size=(8, 8), normalize=((0.4,) * 3, (0.2,) * 3))
    net, x = net.eval(), torch.rand(2, 3, 8, 8)
    found = fold(net)
    assert isinstance(found, Normalized) and fuse(found) == 17
    assert sum(isinstance(layer, ConvRelu) for layer in found.modules()) == 17
    before = found(x)
    with torch.no_grad():
        for weights in net.parameters():
            weights += 0.01 * torch.randn_like(weights)
    refresh(found)
    assert not torch.allclose(before, net(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found(x), net(x), rtol=1e-4, atol=1e-4)
