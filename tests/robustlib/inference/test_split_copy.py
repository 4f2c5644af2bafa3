"""The copy of a model in parts: sums of gradients are those of the model, and its first layers are passed once."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.batched_model import Room
from robustlib.inference.fast_copy import exact_replica
from robustlib.inference.replica import Replica
from robustlib.inference.split_copy import in_parts, split_copy
from robustlib.inference.split_replica import SplitReplica
from robustlib.losses import pick
from robustlib.models.layers import Normalize

SIDE = 12


class Shifted(nn.Module):
    """Arithmetic in front, ReLU in place behind the first convolution, and a way around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first((2 * x - 1) / 0.5))
        return self.fc(F.relu(x + self.second(x)).mean((2, 3)))


def pooled() -> nn.Module:
    """Blocks of which a BatchNorm turns some signs."""
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(16)]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)  # pyright: ignore[reportArgumentType]
    blocks = [nn.Conv2d(3, 8, 3, padding=1), norms[0], nn.ReLU(), nn.MaxPool2d(2)]
    blocks += [nn.Conv2d(8, 16, 3, padding=1), norms[1], nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]), *blocks, nn.Flatten(), nn.Linear(16 * 9, 10))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 10))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 20), nn.Tanh(), nn.Linear(20, 10))


KINDS = [pooled, Shifted, linear, perceptron]


def images(n: int) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 10


def made(kind: Callable[[], nn.Module]) -> tuple[nn.Module, Replica]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, exact_replica(model, images(16)[0])


def split(kind: Callable[[], nn.Module]) -> tuple[nn.Module, SplitReplica]:
    model, exact = made(kind)
    copy = split_copy(exact, model, images(16)[0])
    assert isinstance(copy, SplitReplica)
    return model, copy


def slow_sum(model: nn.Module, points: Sequence[Tensor], weights: Sequence[float], y: Tensor) -> Tensor:
    """Point by point, in float64."""
    model = model.double()
    try:
        found = torch.zeros_like(points[0], dtype=torch.float64)
        for point, weight in zip(points, weights, strict=True):
            x = point.double().requires_grad_()
            found += weight * torch.autograd.grad(pick(model(x), y).sum(), x)[0]
        return found
    finally:
        model.float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 40, 70])
def test_sums_are_those_of_the_model(kind: Callable[[], nn.Module], count: int):
    model, copy = split(kind)
    end, y = images(4)
    start = end.flip(0) / 2
    places, weights = torch.linspace(0.02, 0.98, count).tolist(), torch.linspace(-1, 2, count).tolist()
    expected = slow_sum(model, [start + place * (end - start) for place in places], weights, y)
    on_line = copy.line_gradient_sum(start, end, places, weights, pick, y)
    anywhere = copy.gradient_sum(end, lambda k: start + places[k] * (end - start), weights, pick, y)
    for found in (on_line, anywhere):
        apart = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        assert apart.median() < 1e-5 and apart.max() < 1e-2  # a ReLU whose input is all but zero


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pooled, Shifted])
@pytest.mark.parametrize("count", [3, 50])
def test_bits_depend_on_no_neighbour_and_no_order(kind: Callable[[], nn.Module], count: int):
    _, copy = split(kind)
    end, y = images(24)
    start, places, weights = torch.zeros_like(end), torch.linspace(0.1, 1, count).tolist(), [0.5] * count

    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        given = start[rows], end[rows], y[rows]
        return (
            copy.line_gradient_sum(given[0], given[1], places, weights, pick, given[2]),
            copy.gradient_sum(given[1], lambda k: places[k] * given[1], weights, pick, given[2]),
        )

    whole = sums(torch.arange(24))
    for rows in (torch.arange(7), *torch.arange(2).split(1), torch.arange(24).flip(0)):
        assert all(torch.equal(some, every[rows]) for some, every in zip(sums(rows), whole, strict=True))


def test_the_first_layers_are_passed_twice_whatever_the_points(monkeypatch: pytest.MonkeyPatch):
    _, copy = split(pooled)
    x, y = images(8)
    passed: list[int] = []
    copy.split.head.register_forward_hook(lambda layer, given, answer: passed.append(len(given[0])))  # pyright: ignore
    copy.count.clear()
    copy.line_gradient_sum(torch.zeros_like(x), x, [0.1] * 50, [1.0] * 50, pick, y)
    assert passed == [8, 8] and (copy.count.forwards, copy.count.gradients) == (400, 400)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_that_share_out_images_give_the_same_bits(threads: int, own_threads: None):
    _, copy = split(pooled)
    x, y = images(5)
    given = (torch.zeros_like(x), x, torch.linspace(0, 1, 40).tolist(), [1.0] * 40, pick, y)
    torch.set_num_threads(1)
    alone = copy.line_gradient_sum(*given)
    torch.set_num_threads(threads)
    assert torch.equal(copy.line_gradient_sum(*given), alone)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("steady", [True, False])
def test_images_share_an_unfilled_pass_where_their_bits_stay(steady: bool, monkeypatch: pytest.MonkeyPatch):
    _, copy = split(perceptron)
    monkeypatch.setattr(copy, "room", Room((8, 16)))
    monkeypatch.setattr(SplitReplica, "steady", lambda *given: steady)
    x, y = images(5)
    passed: list[int] = []
    copy.split.tail.register_forward_hook(lambda layer, given, answer: passed.append(len(given[0])))  # pyright: ignore
    copy.line_gradient_sum(torch.zeros_like(x), x, [0.1] * 15, [1.0] * 15, pick, y)
    full = 30 if steady else 32
    assert sorted(passed) == [16, full, full]  # threads share them out


def test_equal_pixels_share_nothing():
    """A black image's points are constant: of four equal pixels the first gets the gradient, as in PyTorch."""
    model, copy = split(pooled)
    x, y = torch.zeros(8, 3, SIDE, SIDE), images(8)[1]
    found = copy.line_gradient_sum(x, x, [0.5, 1.0], [0.5, 0.5], pick, y)
    inputs = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(pick(model(inputs), y).sum(), inputs)
    assert torch.allclose(found, expected, atol=1e-6)


def test_sums_lie_in_memory_as_the_images_do():
    """Of one channel too, where two orders are one: an operation on the map may choose its way by the strides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    x = torch.rand(16, 1, 8, 8)
    copy = split_copy(exact_replica(model, x), model, x)
    assert isinstance(copy, SplitReplica)
    for like in (x, torch.empty_strided(x.shape, (64, 1, 8, 1)).copy_(x)):
        given = [1.0], pick, torch.arange(16) % 10
        for found in (copy.line_gradient_sum(like, like, [0.5], *given), copy.gradient_sum(like, lambda k: x, *given)):
            assert found.stride() == like.stride()


@pytest.mark.slow
def test_sums_are_kept_once(monkeypatch: pytest.MonkeyPatch):
    """One of each image, and those of a pass: at 224 pixels a sum takes megabytes."""
    _, copy = split(pooled)
    monkeypatch.setattr(copy, "room", Room((8,)))
    x, y = images(6)
    shape, kept, pull = (8, SIDE, SIDE), list[int](), SplitReplica.pull

    def looking(*given) -> Tensor:
        kept.append(sum(type(each) is Tensor and each.shape == shape for each in gc.get_objects()))
        return pull(*given)

    monkeypatch.setattr(SplitReplica, "pull", looking)
    copy.gradient_sum(x, lambda k: x, [1.0] * 16, pick, y)
    assert max(kept) <= len(x) + 2  # of two threads


def test_memory_that_ran_out_leaves_smaller_batches(monkeypatch: pytest.MonkeyPatch):
    _, copy = split(pooled)
    x, y = images(8)
    given = (torch.zeros_like(x), x, torch.linspace(0, 1, 40).tolist(), [1.0] * 40, pick, y)
    expected, pull, largest = copy.line_gradient_sum(*given), SplitReplica.pull, copy.sizes[-1]

    def short_of_memory(self: SplitReplica, net, leaf: Tensor, *rest):
        if len(leaf) > 32:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return pull(self, net, leaf, *rest)

    monkeypatch.setattr(SplitReplica, "pull", short_of_memory)
    assert torch.allclose(copy.line_gradient_sum(*given), expected, atol=1e-5)
    assert copy.sizes[-1] <= 32 < largest


class Asking(nn.Module):
    """A network that asks what its images are, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pooled()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.max() <= 1 else self.net(x / 255)


def bent_first() -> nn.Module:
    return nn.Sequential(nn.Tanh(), linear())


def hooked() -> nn.Module:
    model = pooled()
    model[1].register_forward_hook(lambda layer, given, answer: answer.clamp(max=100))  # pyright: ignore
    return model


class Switches(Shifted):
    """Some of the rest has no gradient, or is computed in bfloat16: too little of it to show on a few images."""

    def __init__(self, switch: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.switch = switch

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        with self.switch():
            small = self.second(x).float() / 100
        return self.fc((x + small).mean((2, 3)))


def without_gradient() -> nn.Module:
    return Switches(torch.no_grad)


def in_half() -> nn.Module:
    return Switches(partial(torch.autocast, "cpu", torch.bfloat16))


def clamped_images() -> nn.Module:
    """The model's own forward, which a trace leaves out, changes only what lies beyond the samples."""
    model = pooled()
    before = model.forward
    model.forward = lambda x: before(x.clamp(0, 1))
    return model


def clamped_in_front() -> nn.Module:
    model = pooled()
    before = model[1].forward  # pyright: ignore
    model[1].forward = lambda x: before(x.clamp(-4, 4))  # pyright: ignore
    return model


UNTRACED = [Asking, bent_first, hooked, clamped_images, clamped_in_front, without_gradient, in_half]


@pytest.mark.parametrize("kind", UNTRACED)
def test_what_cannot_be_split_stays_the_model(kind: Callable[[], nn.Module]):
    model, exact = made(kind)
    assert split_copy(exact, model, images(16)[0]) is exact


class WritesBehindHead(Shifted):
    """What the head gives is a leaf in the rest, which no operation may write into."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.first(x).mul_(2)).mean((2, 3)))


def test_switches_of_the_callers_are_none_of_the_models():
    model, exact = made(pooled)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert isinstance(split_copy(exact, model, images(16)[0]), SplitReplica)


def test_nothing_is_printed_where_a_part_does_not_run(capfd: pytest.CaptureFixture[str]):
    model, exact = made(WritesBehindHead)
    assert split_copy(exact, model, images(16)[0]) is exact
    assert capfd.readouterr() == ("", "")


def test_a_copy_with_other_sums_is_not_used(monkeypatch: pytest.MonkeyPatch):
    def another(model: nn.Module, memory_format: torch.memory_format):
        found = in_parts(model, memory_format)
        with torch.no_grad():
            next(found.head.parameters()).mul_(1.2)  # pyright: ignore
        return found

    monkeypatch.setattr("robustlib.inference.split_copy.in_parts", another)
    model, exact = made(pooled)
    assert split_copy(exact, model, images(16)[0]) is exact


def test_the_model_itself_is_left_as_it_is():
    model, exact = made(pooled)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    split_copy(exact, model, images(16)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weights.requires_grad and weights.grad is None for weights in model.parameters())


def test_sums_within_inference_mode_are_refused():
    _, copy = split(linear)
    x, y = images(2)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside of torch\.inference_mode"):
        copy.line_gradient_sum(x, x, [0.5], [1.0], pick, y)
