"""The folded form computes what the network computes, follows it while it trains, and leaves it as it was."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize
from torchvision.transforms.v2 import Normalize as NormalizeV2

from robustlib.inference import fast_copy
from robustlib.inference.fast_copy import make_replicas, search_replica
from robustlib.inference.fast_layers import HalvingPool, ReluPool, SteadyLinear, WideLinear
from robustlib.inference.folded_layers import Folded, Normalized, refresh
from robustlib.inference.graph_rewriting import fold
from robustlib.models import build
from robustlib.training.copy_updates import tracking_copy


def trained_a_little(model: nn.Module, shape: tuple[int, ...], classes: int) -> nn.Module:
    """With running statistics that are not those of the start, in training mode."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(32, *shape)), torch.randint(classes, (32,))).backward()
        optimizer.step()
    model.zero_grad()
    return model


@pytest.mark.parametrize("arch", ["convnet3", pytest.param("resnet18", marks=pytest.mark.slow), "lenet5"])
def test_folded_networks_give_the_same_logits_and_gradients(arch: str):
    torch.manual_seed(0)
    net = build(arch=arch, in_channels=3, num_classes=7, image_size=(32, 32), normalize=((0.4,) * 3, (0.2,) * 3))
    net, x = trained_a_little(net, (3, 32, 32), 7).eval(), torch.rand(6, 3, 32, 32)
    folded = fold(copy.deepcopy(net))
    kinds = [type(layer) for layer in folded.modules()]
    assert isinstance(folded, Normalized) and nn.BatchNorm2d not in kinds and WideLinear in kinds
    assert nn.Conv2d not in kinds and nn.Linear not in kinds
    for call in (net, folded):
        x.requires_grad_().grad = None
        call(x)[:, 3].sum().backward()
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)
    (expected,), (found,) = (torch.autograd.grad(call(x)[:, 3].sum(), x) for call in (net, folded))
    # Rounding may take one activation to the other side of a ReLU's kink, and with it the gradient of that image.
    alike = [torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(found, expected, strict=True)]
    assert sum(alike) >= 5


def test_pools_by_two_are_joined_with_their_relu_whichever_comes_first():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.padded = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.MaxPool2d(2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(torch.relu(self.conv(x)))
            x = F.relu(F.max_pool2d(x, 2, stride=2))
            x = torch.tanh(self.pool(x))
            x = torch.relu(F.max_pool2d(x, 2, 1))
            return F.relu(self.padded(x)).flatten(1)

    net, x = Pools().eval(), torch.rand(2, 3, 34, 34)
    folded = fold(copy.deepcopy(net))
    kinds = [type(layer) for layer in folded.modules()]
    assert (kinds.count(ReluPool), kinds.count(HalvingPool), kinds.count(nn.MaxPool2d)) == (2, 1, 1)
    torch.testing.assert_close(folded(x), net(x))


def test_linear_layers_of_a_search_copy_always_get_as_many_rows():
    net = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8), normalize=((0.3,), (0.3,))).eval()
    replicas = make_replicas(net, torch.rand(64, 1, 8, 8))
    kinds = [type(layer) for layer in replicas.search.modules()]
    assert kinds.count(SteadyLinear) == 3


@pytest.mark.parametrize("bias, affine", [(True, True), (False, True), (True, False)])
def test_a_convolution_and_its_batchnorm_by_hand(bias: bool, affine: bool):
    layer, norm = nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4, affine=affine)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    x = torch.rand(2, 3, 6, 6)
    expected = norm.eval()(layer(x))
    torch.testing.assert_close(Folded(layer, norm)(x), expected, rtol=1e-5, atol=1e-5)


def test_what_is_called_twice_is_folded_into_nothing():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.conv(self.one(self.conv(x)))).flatten(1)

    net = trained_a_little(Twice(), (3, 4, 4), 48).eval()
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(fold(copy.deepcopy(net))(x), net(x), rtol=1e-5, atol=1e-5)


def test_the_copy_follows_a_model_in_training_and_leaves_it_alone():
    net = build(arch="convnet3", in_channels=1, num_classes=10, image_size=(8, 8), normalize=((0.3,), (0.3,)))
    net, x = trained_a_little(net, (1, 8, 8), 10), torch.rand(64, 1, 8, 8)
    before = copy.deepcopy(net.state_dict())
    search = tracking_copy(net, x)
    assert search is not None and net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    first = search()(x)
    trained_a_little(net, (1, 8, 8), 10)
    net.eval()
    allowed = 0.1 * net(x).std().item()
    assert (first - net(x)).abs().max() > allowed  # it has moved, ...
    assert (search()(x) - net(x)).abs().max() < allowed  # ... and the copy with it
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.parameters())


def test_a_model_with_weights_elsewhere_is_not_followed():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(1)), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) * self.scale

    net = Scaled()
    assert tracking_copy(net, torch.rand(64, 1, 4, 4)) is None
    assert net.scale.requires_grad and net.scale.dtype == torch.float32
    # To be attacked as it is, it may be copied all the same.
    assert make_replicas(net.eval(), torch.rand(64, 1, 4, 4)).search.mode.startswith("float32, folded")


def test_refreshing_takes_the_weights_as_they_are():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    folded, x = fold(net), torch.rand(3, 1, 2, 2)
    with torch.no_grad():
        net[1].weight.mul_(2)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert not torch.allclose(folded(x), net(x))
    refresh(folded)
    assert torch.equal(folded(x), net(x))


def test_a_copy_that_moves_goes_whole_and_what_is_wide_stays_wide():
    """Its normalisation and its logits keep float32 when it is cast, and lay behind when it moved."""
    net = search_replica(
        fast_copy.folded,
        build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8)),
        torch.bfloat16,
        (8,),
        False,
    ).net
    assert isinstance(net, Normalized)
    kinds = {name: t.dtype for name, t in net.state_dict().items()}
    wide = {name for name, kind in kinds.items() if kind == torch.float32}
    assert {"mean", "std"} < wide < set(kinds)  # and the last layer's
    values = {name: t.clone() for name, t in net.state_dict().items()}
    net.to("cpu", torch.bfloat16)
    assert all(torch.equal(t, values[name]) and t.dtype == kinds[name] for name, t in net.state_dict().items())
    net.to("meta")
    assert {t.device.type for t in (*net.parameters(), *net.buffers())} == {"meta"}
    assert {name: t.dtype for name, t in net.state_dict().items()} == kinds


@pytest.fixture
def inner() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Standardised(nn.Module):
    """The first layer that people write."""

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, axes: int):
        super().__init__()
        shape = (1, 3, 1, 1) if axes == 4 else (3, 1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(shape))
        self.register_buffer("std", torch.tensor(STD).reshape(shape))
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mean) / self.std)


FIRST: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torchvision": lambda net: nn.Sequential(Normalize(MEAN, STD), net),
    "torchvision, version 2": lambda net: nn.Sequential(NormalizeV2(list(MEAN), list(STD)), net),
    "torchvision, in place": lambda net: nn.Sequential(Normalize(MEAN, STD, inplace=True), net),
    "buffers of (1, 3, 1, 1)": partial(Standardised, axes=4),
    "buffers of (3, 1, 1)": partial(Standardised, axes=3),
}


@pytest.mark.parametrize("name", FIRST)
def test_normalisation_in_front_is_in_float32_whoever_wrote_it(name: str, inner: nn.Module):
    model, x = FIRST[name](inner).eval(), torch.rand(16, 3, 8, 8)
    folded = fold(copy.deepcopy(model))
    assert isinstance(folded, Normalized)
    torch.testing.assert_close(folded.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(folded(x), model(x.clone()), rtol=1e-4, atol=1e-5)
    half = search_replica(fast_copy.folded, model, torch.bfloat16, (16,), False)
    assert half.dtype == torch.float32  # images come as they are


def test_torchvisions_normalize_elsewhere_stays_where_it_is(inner: nn.Module):
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalise, self.net = Normalize(MEAN, STD), inner

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.normalise(x.sqrt()))

    model, x = Later().eval(), torch.rand(4, 3, 8, 8)
    folded = fold(copy.deepcopy(model))
    assert not isinstance(folded, Normalized)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
