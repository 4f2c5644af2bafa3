"""The exact copy of a model: its bits are the model's, or it is not used."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.exact_copy import exact_copy, pooled_first
from robustlib.inference.fast_copy import exact_replica
from robustlib.losses import pick


class Rounded(nn.Module):
    """A network that asks what its images are, which no trace can follow."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.max() <= 1 else self.net(x / 255)


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_logits_and_gradients_have_the_bits_of_the_model(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, y = test[0][:150], test[1][:150]
    exact = exact_replica(net, x[:64])
    copy = exact_copy(exact, net, x[:64])
    assert copy is not exact and copy.mode == "float32, as given, pooled first"
    assert torch.equal(copy(x), exact(x))
    for first, second in zip(exact.value_and_grad(x, pick, y), copy.value_and_grad(x, pick, y), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(3, 15, 21), (3, 16, 21), (3, 15, 20)], ids=str)
def test_images_with_an_odd_side_have_a_copy_with_the_same_bits(shape: tuple[int, int, int]):
    torch.manual_seed(0)
    model = normed_net()
    x, y = torch.rand(70, *shape), torch.arange(70) % 10
    exact = exact_replica(model, x[:64])
    copy = exact_copy(exact, model, x[:64])
    assert copy is not exact
    for first, second in zip(exact.value_and_grad(x, pick, y), copy.value_and_grad(x, pick, y), strict=True):
        assert torch.equal(first, second)


def test_hooks_that_no_sample_sets_off_are_kept():
    torch.manual_seed(0)
    model = normed_net()
    x = torch.rand(64, 3, 16, 16)
    highest = model[:3](x).max().item()
    exact = exact_replica(model, x)
    assert exact_copy(exact, model, x) is not exact
    model[2].register_forward_hook(lambda layer, inputs, answer: answer.clamp(max=highest))
    copy = exact_copy(exact, model, x)
    assert torch.equal(copy(10 * x), exact(10 * x))


@pytest.mark.parametrize("place", ["", "0", "2"])
def test_forwards_of_a_layers_own_that_no_sample_tells_are_kept(place: str):
    """Of the model itself too, which a trace follows by its class's."""
    torch.manual_seed(0)
    model = normed_net()
    x = torch.rand(64, 3, 16, 16)
    layer, highest = model.get_submodule(place), model[:3](x).max().item() + 1
    before = layer.forward
    layer.forward = lambda given: before(given.clamp(max=highest))
    exact = exact_replica(model, x)
    copy = exact_copy(exact, model, x)
    assert torch.equal(copy(10 * x), exact(10 * x))


def normed_net() -> nn.Sequential:
    """A network in eval mode whose BatchNorm turns some signs."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), norm := nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def test_the_model_itself_is_left_as_it_is(net: nn.Module, test: tuple[Tensor, Tensor]):
    net.zero_grad()  # other tests have this network too
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in net.named_parameters()}
    exact_copy(exact_replica(net, test[0][:64]), net, test[0][:64])
    for name, tensor in net.named_parameters():
        assert torch.equal(tensor, before[name][0]) and tensor.requires_grad == before[name][1] and tensor.grad is None


@pytest.mark.parametrize("wrap", [Rounded, lambda net: Averaged().eval()], ids=["untraceable", "without pooling"])
def test_what_cannot_be_pooled_first_stays_the_model(wrap, net: nn.Module, test: tuple[Tensor, Tensor]):
    torch.manual_seed(0)
    model = wrap(net)
    exact = exact_replica(model, test[0][:64])
    assert exact_copy(exact, model, test[0][:64]) is exact


def test_a_copy_that_differs_is_not_used(net: nn.Module, test: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch):
    def another(model: nn.Module) -> nn.Module:
        found = pooled_first(model)
        with torch.no_grad():
            next(found.parameters()).mul_(1 + 1e-6)
        return found

    monkeypatch.setattr("robustlib.inference.exact_copy.pooled_first", another)
    exact = exact_replica(net, test[0][:64])
    assert exact_copy(exact, net, test[0][:64]) is exact
