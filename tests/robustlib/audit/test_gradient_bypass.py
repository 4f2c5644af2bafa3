"""Differentiable forms: the model's own answers, with the gradient of what stands in for parts that have none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.audit.attack_plan import Target, differentiable_forms
from robustlib.audit.gradient_bypass import DifferentiableModel
from tests.helpers.broken_defences import Around, numpy_inside

SLOPE, OFFSET = torch.tensor([2.0]).reshape(1, 1, 1, 1), torch.tensor([0.5]).reshape(1, 1, 1, 1)


class Coarse(nn.Module):
    """Steps that numpy takes: no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy((2 * x.detach().numpy() + 0.5).round(1))


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("place", ["before", "across"])
def test_a_surrogate_gives_its_gradient_and_no_other_answer(place: str, steps: bool):
    """Within a straight-through estimator too, which attaches whatever is detached."""
    model = nn.Sequential(Coarse(), *linear()).eval()
    name = "1" if place == "before" else "0"  # the layer after, or the one that has no gradient
    surrogates: Any = {place: {name: (SLOPE, OFFSET)}}
    form = DifferentiableModel(model, steps=steps, **surrogates)
    x = torch.rand(5, 1, 4, 4).requires_grad_()
    logits = form(x)
    assert torch.allclose(logits, model(x), atol=1e-6)
    (found,) = torch.autograd.grad(logits[:, 1].sum(), x)
    layer = model[2]
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(found, 2 * layer.weight[1].reshape(1, 1, 4, 4).expand_as(found), atol=1e-6)


def test_what_leaves_torch_on_the_way_is_gone_round():
    """Backward pass differentiable approximation (Athalye et al. 2018): its form has the gradient of the network."""
    net, x = linear(), torch.rand(32, 1, 4, 4)
    model = numpy_inside(net).eval()
    target = Target(model, model, model, randomised=False, gradient=False, classes=3)
    forms = {name: form for name, _, form in differentiable_forms(target, x)}
    assert "straight through all before the first layer" in forms
    form = forms["straight through all before the first layer"]
    x = x[:4].clone().requires_grad_()
    (found,) = torch.autograd.grad(form(x)[:, 0].sum(), x)
    layer = net[1]
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(found, layer.weight[0].reshape(1, 1, 4, 4).expand_as(found), rtol=0.05)  # a slope near 1


STEPS = {
    "round": lambda x: torch.round(input=8 * x) / 8,
    "round to a digit": lambda x: x.round(decimals=1),
    "floor of a quotient": lambda x: x // 0.125 * 0.125,
    "floor_divide": lambda x: torch.floor_divide(x, 0.125) * 0.125,
    "rounded quotient": lambda x: torch.div(x, 0.125, rounding_mode="floor") * 0.125,
    "rounded quotient by name": lambda x: x.div(other=0.125, rounding_mode="trunc") * 0.125,
    "less a remainder": lambda x: x - x % 0.125,
    "less what fmod leaves": lambda x: x - torch.fmod(x, 0.125),
    "less a fraction": lambda x: (8 * x - (8 * x).frac()) / 8,
    "exact quotient": lambda x: torch.div(x, 1.0),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_the_identity_going_backwards(name: str):
    step, net = STEPS[name], linear()
    model = Around(net, before=step).eval()
    x = torch.rand(5, 1, 4, 4).requires_grad_()
    logits = DifferentiableModel(model, steps=True)(x)
    assert torch.allclose(logits, model(x), atol=1e-5)
    (found,) = torch.autograd.grad(logits[:, 2].sum(), x)
    layer = net[1]
    assert isinstance(layer, nn.Linear)
    assert torch.allclose(found, layer.weight[2].reshape(1, 1, 4, 4).expand_as(found), atol=1e-5)
