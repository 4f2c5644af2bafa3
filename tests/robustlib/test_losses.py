"""losses.py and metrics.py: closed-form gradients through a linear model, and SciPy's Wilson interval."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import nn

from robustlib.inference.oracle import as_oracle
from robustlib.losses import cross_entropy, find_loss, margin
from robustlib.metrics import confusion_matrix, wilson


@pytest.fixture
def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(30, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


Y = torch.arange(30) % 4


def test_cross_entropy_gradient_is_softmax_minus_one_hot_times_weights(linear, x):
    error = linear(x).softmax(1) - F.one_hot(Y, 4)
    expected = (error @ linear[1].weight).reshape(x.shape)
    torch.testing.assert_close(as_oracle(linear).value_and_grad(x, cross_entropy, Y)[2], expected)
    torch.testing.assert_close(cross_entropy(linear(x), Y), -linear(x).softmax(1).log()[torch.arange(30), Y])


def test_gradient_of_the_margin_is_best_wrong_row_minus_true_row(linear, x):
    logits, weight = linear(x).tolist(), linear[1].weight
    for i, grad in enumerate(as_oracle(linear).value_and_grad(x, margin, Y)[2]):
        wrong = max((k for k in range(4) if k != Y[i]), key=lambda k: logits[i][k])
        torch.testing.assert_close(grad.flatten(), weight[wrong] - weight[Y[i]])


def test_margin_is_positive_exactly_where_misclassified(linear, x):
    values, wrong = margin(linear(x), Y), linear(x).argmax(1) != Y
    assert wrong.any() and not wrong.all()
    assert torch.equal(values > 0, wrong)
    assert margin(torch.tensor([[1.0, 4.0, 3.0], [-5.0, -2.0, -2.5]]), torch.tensor([1, 0])).tolist() == [-1.0, 3.0]


def test_gradient_leaves_no_trace_and_works_without_grad_mode(linear, x):
    with torch.no_grad():
        assert as_oracle(linear).value_and_grad(x, cross_entropy, Y)[2].abs().sum() > 0
    assert not x.requires_grad and x.grad is None
    assert all(p.grad is None and p.requires_grad for p in linear.parameters())


def test_find_loss():
    assert find_loss("ce") is cross_entropy and find_loss("margin") is margin
    with pytest.raises(ValueError, match=r"^unknown loss 'hinge', expected one of: ce, margin, dlr$"):
        find_loss("hinge")


@pytest.mark.parametrize("n", [1, 2, 10, 449, 1000, 10000])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.43, 0.5, 0.999, 1.0])
def test_wilson_matches_scipy(n: int, share: float):
    successes = round(n * share)
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(successes, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-15)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_between_whole_numbers_and_of_nothing():
    low, high = wilson(42.5, 100)
    assert wilson(42, 100)[0] < low < wilson(43, 100)[0]
    assert wilson(42, 100)[1] < high < wilson(43, 100)[1]
    assert math.isclose(sum(wilson(50, 100)), 1)
    with pytest.raises(ValueError, match="expected at least one example"):
        wilson(0, 0)


def test_confusion_matrix_matches_the_slow_twin():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 6, 500), rng.integers(0, 6, 500)  # the seventh class never occurs
    expected = [[sum((label == i) & (prediction == j)) for j in range(7)] for i in range(7)]
    assert confusion_matrix(label, prediction, 7).tolist() == expected
