"""The quick layers give what PyTorch's give, there and back, and their bits do not depend on the number of rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib.inference.fast_layers import ROWS, HalvingPool, ReluPool, SteadyLinear

SHAPES = [(8, 8), (7, 9), (2, 3)]


@pytest.mark.parametrize("height, width", SHAPES)
def test_halving_pool_is_max_pooling(height: int, width: int):
    x = torch.randn(3, 5, height, width)
    assert torch.equal(HalvingPool()(x), F.max_pool2d(x, 2))
    x.requires_grad_()
    assert torch.equal(HalvingPool()(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("height, width", SHAPES)
def test_relu_pool_is_relu_and_max_pooling(
    height: int, width: int, dtype: torch.dtype, memory_format: torch.memory_format
):
    # All numbers differ in bfloat16 too, from 0.25 to 48, so that no rule for equal ones is needed; infinity among them.
    bits = torch.randperm(3 * 5 * height * width).reshape(3, 5, height, width) + 16000
    x = (bits.to(torch.int16).view(torch.bfloat16) * (torch.rand(bits.shape) - 0.5).sign()).to(dtype)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = torch.inf, -torch.inf
    x = x.to(memory_format=memory_format).requires_grad_()
    expected, found = F.relu(F.max_pool2d(x, 2)), ReluPool()(x)
    assert torch.equal(found, expected) and found.dtype == dtype
    with torch.no_grad():
        assert torch.equal(ReluPool()(x), expected)
    into = torch.randn(expected.shape).to(dtype)
    assert torch.equal(*(torch.autograd.grad(pooled, x, into)[0] for pooled in (found, expected)))


def test_of_equal_pixels_one_gets_the_gradient_and_of_negative_ones_none():
    x = torch.tensor([[2.0, 2.0], [2.0, 1.0]]).reshape(1, 1, 2, 2).requires_grad_()
    (slope,) = torch.autograd.grad(ReluPool()(x).sum(), x)
    assert slope.flatten().tolist() == [1, 0, 0, 0]
    for none in (-x, 0 * x):
        assert torch.autograd.grad(ReluPool()(none).sum(), x)[0].count_nonzero() == 0


def test_a_pool_twice_differentiated_says_that_it_cannot():
    x = torch.rand(1, 1, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad((ReluPool()(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_steady_linear_layer_gives_a_row_the_same_bits_in_any_batch(dtype: torch.dtype):
    linear = nn.Linear(2048, 70).to(dtype)
    steady = SteadyLinear(linear)
    x = torch.randn(3 * ROWS + 5, 2048).to(dtype).requires_grad_()
    found = steady(x)
    torch.testing.assert_close(found, linear(x), rtol=0.02, atol=0.02)
    into = torch.randn(found.shape).to(dtype)
    (slope,) = torch.autograd.grad(found, x, into)
    for rows in (1, 8, ROWS, ROWS + 1, 2 * ROWS):
        few = x[:rows].detach().requires_grad_()
        again = steady(few)
        assert torch.equal(again, found[:rows])
        assert torch.equal(torch.autograd.grad(again, few, into[:rows])[0], slope[:rows])


def test_a_steady_linear_layer_takes_any_number_of_axes():
    linear = nn.Linear(4, 3)
    for shape in ((4,), (2, 4), (2, 5, 4), (2, 3, 5, 4), (0, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(SteadyLinear(linear)(x), linear(x))
