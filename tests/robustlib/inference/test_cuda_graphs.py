"""Recorded passes, on a stand-in for CUDA graphs that spoils what a replay spoils: see fake_cuda."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.inference import fast_copy
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import attempt, make_replicas, search_replica
from robustlib.inference.replica import Replica
from tests.helpers.fake_cuda import FakeCuda, install

SIZES = (8, 32)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install(monkeypatch)


@pytest.fixture
def net() -> nn.Module:
    """A small convolutional network, folded and fused as larger ones are; its weights want no gradient."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6 * 4 * 4, 10)).eval().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def ten(logits: Tensor) -> Tensor:
    return logits


@pytest.mark.parametrize("n", [5, 8, 40])
def test_every_gradient_of_one_pass_is_right(n: int, cuda: FakeCuda, net: nn.Module, x: Tensor):
    found = Replica(Graphs(net), sizes=SIZES).values_and_grads(x[:n], ten)
    expected = Replica(net, sizes=SIZES).values_and_grads(x[:n], ten)
    for came, right in zip(found, expected, strict=True):
        torch.testing.assert_close(came, right)


def test_what_is_given_out_is_not_written_over(cuda: FakeCuda, net: nn.Module, x: Tensor):
    replica, x = Replica(Graphs(net), sizes=SIZES), x[:8]
    logits = replica(x)
    _, _, gradients = replica.values_and_grads(x, lambda z: z[:, :1])
    kept = logits.clone(), gradients.clone()
    replica(1 - x)
    replica.values_and_grads(1 - x, lambda z: z[:, :1])
    assert torch.equal(logits, kept[0]) and torch.equal(gradients, kept[1])


def test_a_gradient_asked_for_after_the_next_pass_is_refused(cuda: FakeCuda, net: nn.Module, x: Tensor):
    graphs, x = Graphs(net), x[:8].clone().requires_grad_()
    first = graphs(x)
    graphs(1 - x)
    with pytest.raises(RuntimeError, match="played again"):
        first.sum().backward()


def test_a_recording_that_fails_leaves_the_stream_as_it_was(cuda: FakeCuda, net: nn.Module, x: Tensor):
    before, cuda.refuses = torch.cuda.current_stream(), "operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="not permitted"):
        Graphs(net)(x[:8])
    assert torch.cuda.current_stream() is before


def test_a_recording_of_a_model_without_gradients_says_so(cuda: FakeCuda):
    with pytest.raises(ValueError, match="no gradient with respect to its images"):
        Graphs(nn.Sequential(nn.Flatten(), Detached()))(torch.rand(4, 1, 2, 2).requires_grad_())


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@pytest.fixture
def recorded(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Search copies are recorded, as on a GPU."""

    def ways(model: nn.Module, sample: Tensor, dtypes: list[torch.dtype]) -> list[partial[Replica]]:
        return [partial(search_replica, fast_copy.folded, model, dtype, SIZES, True) for dtype in dtypes]

    monkeypatch.setattr(fast_copy, "forms", ways)
    return cuda


@pytest.mark.parametrize("name, options", [("deepfool", {}), ("fab", {"eps": None, "steps": 10})])
def test_distances_are_those_of_the_model(name: str, options: dict, recorded: FakeCuda, net: nn.Module, x: Tensor):
    """Attacks that take several gradients of a pass: on a GPU they came out 12 % too long."""
    x, y = x[:32], net(x[:32]).argmax(1)
    replicas = make_replicas(net, x, half=False)
    assert replicas.search.mode == "float32, folded, channels-last, graphs"
    attack = partial(ATTACKS[name], norm="L2", **options)
    found, expected = ((attack(model, x, y) - x).flatten(1).norm(dim=1) for model in (replicas.search, net))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002)


def test_a_recording_that_plays_nothing_is_not_used(recorded: FakeCuda, monkeypatch, net: nn.Module, x: Tensor):
    """As of a device that was not the current one: it answers for ever what it was recorded with."""
    monkeypatch.setattr("tests.helpers.fake_cuda.Graph.replay", lambda self: None)
    way = partial(search_replica, fast_copy.folded, net, torch.float32, SIZES, True)
    assert attempt(way, x[:30], net(x[:30])) is None


def test_what_is_recorded_lies_on_the_images_device_and_a_stream_of_it(cuda: FakeCuda, net: nn.Module, x: Tensor):
    """Whichever device is the current one: on another's stream nothing would be recorded."""
    replica = Replica(Graphs(net), sizes=(8,))
    replica(x[:8])
    replica.values_and_grads(x[:8], ten)
    assert set(cuda.devices) == {x.device} and {stream.device for stream in cuda.streams} == {x.device}
    assert len(cuda.streams) == 3  # a pass alone, and one with its gradient
