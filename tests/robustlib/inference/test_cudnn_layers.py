"""A convolution with its addition and ReLU in one: the numbers and gradients of the calls one by one."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference import cudnn_layers
from robustlib.inference.cudnn_layers import ConvRelu, Geometry, one_call

SHAPES = {
    "3x3": Geometry((1, 1), (1, 1), (1, 1), 1),
    "strided": Geometry((2, 2), (1, 1), (1, 1), 1),
    "no padding": Geometry((1, 1), (0, 0), (1, 1), 1),
    "uneven": Geometry((2, 1), (0, 2), (1, 1), 1),
    "dilated": Geometry((1, 1), (2, 2), (2, 2), 1),
    "grouped": Geometry((1, 1), (1, 1), (1, 1), 2),
}


def case(geometry: Geometry, dtype: torch.dtype) -> tuple[ConvRelu, Tensor, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=geometry.groups).to(dtype).requires_grad_(False)
    x = torch.randn(5, 4, 9, 8, dtype=dtype, requires_grad=True)
    size = geometry.size(x.shape, conv.weight.shape)
    return ConvRelu(conv, geometry), x, torch.randn(size, dtype=dtype, requires_grad=True)


def one_by_one(layer: ConvRelu, x: Tensor, addend: Tensor | None) -> Tensor:
    y = F.conv2d(x, layer.conv.weight, layer.conv.bias, *layer.geometry)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return F.relu(y if addend is None else y + addend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("adds", [False, True])
def test_values_and_gradients_are_those_of_the_calls_one_by_one(name: str, dtype: torch.dtype, adds: bool):
    layer, x, addend = case(SHAPES[name], dtype)
    inputs = (x, addend) if adds else (x,)
    found, expected = layer(*inputs), one_by_one(layer, x, addend if adds else None)
    assert found.shape == addend.shape and torch.equal(found, expected)
    for _ in range(3):  # several gradients of one pass
        into = torch.randn_like(expected)
        wanted = torch.autograd.grad(expected, inputs, into, retain_graph=True)
        came = torch.autograd.grad(found, inputs, into, retain_graph=True)
        for one, other in zip(came, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences():
    layer, x, addend = case(SHAPES["uneven"], torch.float64)
    assert torch.autograd.gradcheck(layer, (x, addend))


def test_only_the_gradients_that_are_wanted_are_computed():
    layer, x, addend = case(SHAPES["3x3"], torch.float32)
    (alone,) = torch.autograd.grad(layer(x.detach(), addend).sum(), addend)
    assert torch.equal(alone, (layer(x, addend) > 0).float())
    assert not layer(x.detach(), addend.detach()).requires_grad


def test_an_addend_of_one_number_a_channel_has_a_gradient_of_its_shape():
    layer, x, _ = case(SHAPES["3x3"], torch.float64)
    small = torch.randn(6, 1, 1, dtype=torch.float64, requires_grad=True)
    pairs = [
        torch.autograd.grad(call.square().sum(), (x, small)) for call in (layer(x, small), one_by_one(layer, x, small))
    ]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


def test_what_cudnn_would_misread_is_refused():
    layer, x, addend = case(SHAPES["3x3"], torch.float32)
    with pytest.raises(TypeError, match=r"expected an addend of torch\.float32, got torch\.float64"):
        layer(x, addend.double())
    with pytest.raises(RuntimeError, match="expand"):
        layer(x, torch.zeros(3, 5, 6, 9, 8))


def test_twice_differentiated_it_says_that_it_cannot():
    layer, x, addend = case(SHAPES["3x3"], torch.float32)
    (first,) = torch.autograd.grad(layer(x, addend).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("masked", [True, False])
def test_before_a_pooled_relu_the_gradient_needs_no_mask(masked: bool):
    layer, x, _ = case(SHAPES["3x3"], torch.float64)
    layer.masked = masked
    plain = F.relu(F.max_pool2d(F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1), 3, 2))  # pyright: ignore[reportArgumentType, reportCallIssue]
    found = F.relu(F.max_pool2d(layer(x), 3, 2))
    assert torch.equal(found, plain)
    into = torch.randn_like(plain)
    torch.testing.assert_close(torch.autograd.grad(found, x, into), torch.autograd.grad(plain, x, into))


class CuDNN:
    """What torch.cudnn_convolution_relu and torch.cudnn_convolution_add_relu do, with their signatures, on a CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        monkeypatch.setattr(torch, "cudnn_convolution_relu", self.relu)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", self.add_relu)
        monkeypatch.setattr(cudnn_layers, "ordinary_calls", one_call)

    def relu(self, self_: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
             groups: int) -> Tensor:  # fmt: skip
        self.calls.append("relu")
        return F.conv2d(self_, weight, bias, stride, padding, dilation, groups).clamp_min(0)

    def add_relu(self, self_: Tensor, weight: Tensor, z: Tensor, alpha: float | None, bias: Tensor | None, stride: Any,
                 padding: Any, dilation: Any, groups: int) -> Tensor:  # fmt: skip
        self.calls.append("add_relu")
        found = F.conv2d(self_, weight, bias, stride, padding, dilation, groups)
        assert z.shape == found.shape and z.dtype == found.dtype  # which cuDNN asks for, or reads what is not there
        return (found + (1.0 if alpha is None else alpha) * z).clamp_min(0)


def test_the_stand_in_has_the_signatures_of_pytorch(monkeypatch: pytest.MonkeyPatch):
    names = {
        "aten::cudnn_convolution_relu": "self weight bias stride padding dilation groups",
        "aten::cudnn_convolution_add_relu": "self weight z alpha bias stride padding dilation groups",
    }
    for name, expected in names.items():
        schema = torch._C._jit_get_schemas_for_operator(name)
        (found,) = [one for one in schema if not one.overload_name]
        assert " ".join(argument.name for argument in found.arguments) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_cudnn_is_given_what_it_asks_for(name: str, monkeypatch: pytest.MonkeyPatch):
    layer, x, addend = case(SHAPES[name], torch.float64)
    expected = [one_by_one(layer, x, None), one_by_one(layer, x, addend)]
    cudnn = CuDNN(monkeypatch)
    found = [layer(x), layer(x, addend)]
    assert cudnn.calls == ["relu", "add_relu"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found[1].sum(), (x, addend)), torch.autograd.grad(expected[1].sum(), (x, addend))
    )
