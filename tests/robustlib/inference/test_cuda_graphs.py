"""Recorded passes, on a stand-in for CUDA graphs that spoils what a replay spoils: see fake_cuda."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.inference import cuda_graphs, fast_copy
from robustlib.inference.cuda_graphs import Graphs, RecordingFailed
from robustlib.inference.fast_copy import attempt, make_replicas, search_replica
from robustlib.inference.replica import Replica
from robustlib.memory import out_of_memory
from tests.helpers.fake_cuda import FakeCuda, install
from tests.helpers.torch_errors import AcceleratorError

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


def test_a_failed_recording_is_the_last_up_to_torch_2_12(cuda, monkeypatch, net, x: Tensor):
    """As up to torch 2.12: what was recorded plays on, and whoever comes after is told why there is no more."""
    early = Graphs(net)
    expected = early(x[:8])
    monkeypatch.setattr(cuda_graphs, "NEVER_FORGETS", True)
    cuda.refuses = "operation not permitted when stream is capturing"
    with pytest.raises(RecordingFailed, match="8 images cannot be recorded: RuntimeError: operation not permitted"):
        Graphs(net)(x[:8])
    cuda.refuses, tried = "", len(cuda.streams)
    assert torch.equal(early(x[:8]), expected)
    with pytest.raises(
        RecordingFailed, match=r"no graphs: one that failed spoilt this process \(RuntimeError: operation"
    ):
        Graphs(net)(x[:8])
    assert len(cuda.streams) == tried and cuda_graphs.no_recordings()
    monkeypatch.setattr(fast_copy, "no_recordings", lambda: "no graphs: as it says")
    ways: Any = fast_copy.forms(net, On(x), [torch.float32])  # pyright: ignore[reportArgumentType]
    assert [way.args[-1] for way in ways] == [False, False]


class On:
    """Images that say that they lie on a GPU."""

    def __init__(self, x: Tensor):
        self.is_cuda, self.device, self.x = True, torch.device("cpu"), x

    def __getitem__(self, chosen: object) -> Tensor:
        return self.x[chosen]  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_network_that_waits_for_the_device_is_not_tried(cuda: FakeCuda, monkeypatch, x: Tensor):
    """PyTorch tells, where it is asked to, before a recording of it spoils the process."""

    def looks(images: Tensor) -> Tensor:
        if cuda.sync_debug == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return images.flatten(1)[:, :10] * 2

    monkeypatch.setattr(cuda_graphs, "NEVER_FORGETS", True)
    for asked in (x[:8], x[:8].clone().requires_grad_()):
        with pytest.raises(RecordingFailed, match="waits for the device: called a synchronizing"):
            Graphs(looks)(asked)  # pyright: ignore[reportArgumentType]
    assert (cuda.streams, cuda.sync_debug, cuda_graphs.spoilt) == ([], 0, [])


@pytest.mark.parametrize("error", [ValueError, torch.OutOfMemoryError])
def test_the_end_of_a_recording_does_not_hide_what_came_in_it(error, cuda: FakeCuda, x: Tensor):
    def fails(images: Tensor) -> Tensor:
        if cuda.streams:  # in the recording, and not before
            raise error("of its own")
        return images.flatten(1) * 2

    with pytest.raises(RecordingFailed, match=f"8 images cannot be recorded: {error.__name__}: of its own") as raised:
        Graphs(fails)(x[:8])  # pyright: ignore[reportArgumentType]
    assert out_of_memory(raised.value) == (error is torch.OutOfMemoryError)


def test_what_cannot_be_recorded_is_told_in_the_mode(recorded: FakeCuda, monkeypatch, net: nn.Module, x: Tensor):
    recorded.refuses = "operation not permitted when stream is capturing"
    mode = make_replicas(net, x, half=False).search.mode
    assert "graphs: a pass of 8 images cannot be recorded: RuntimeError: operation not permitted" in mode


@pytest.mark.parametrize("error", [AcceleratorError, torch.OutOfMemoryError])
def test_a_size_whose_recording_fails_is_given_up_with_its_graphs(error, cuda: FakeCuda, monkeypatch, net, x: Tensor):
    """CUDA tells memory that ran out in a recording as some other error."""
    play = cuda.graph

    @contextmanager
    def tight(graph: Any, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        with play(graph, pool, stream):
            yield
        if len(into[-1]) > 8:
            raise error("CUDA error: operation failed due to a previous error during capture")

    into: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "graph", tight)
    graphs = Graphs(lambda images: into.append(images) or net(images))  # pyright: ignore[reportArgumentType]
    seen = Replica(graphs, sizes=SIZES)
    logits, _, gradients = seen.values_and_grads(x, ten)
    expected = Replica(net, sizes=SIZES).values_and_grads(x, ten)
    torch.testing.assert_close((logits, gradients), (expected[0], expected[2]))
    assert seen.sizes == (8,) and {len_of for len_of, *_ in graphs.both} == {8}


def test_the_graphs_of_a_network_share_a_pool_and_a_stream(cuda: FakeCuda, net: nn.Module, x: Tensor):
    for model in (Graphs(net), Graphs(net)):
        replica = Replica(model, sizes=SIZES)
        replica(x)
        replica.values_and_grads(x, ten)
    assert len(cuda.pools) == 12 and all(cuda.pools)
    assert len(set(cuda.pools[:6])) == len(set(cuda.pools[6:])) == 1 and cuda.pools[0] != cuda.pools[6]
    assert len({id(stream) for stream in cuda.streams}) == 2


def test_a_size_that_is_given_up_gives_its_memory_back(cuda: FakeCuda, net: nn.Module, x: Tensor):
    graphs = Graphs(net)
    replica = Replica(graphs, sizes=SIZES, recorded=True)
    replica(x)
    replica.values_and_grads(x, ten)
    held = weakref.ref(next(both for shape, both in graphs.both.items() if shape[0] == 32).out)
    pool = cuda.pools[-1]
    gc.disable()
    replica.shrink(32)
    assert (replica.sizes, graphs.forwards, graphs.both, held()) == ((8,), {}, {}, None)
    gc.enable()
    torch.testing.assert_close(replica(x), net(x))
    assert cuda.pools[-1] != pool  # the old one is free to be given back


def test_replicas_and_graphs_go_with_the_last_that_holds_them(recorded: FakeCuda, net: nn.Module, x: Tensor):
    """Without the garbage collector, which knows nothing of a GPU's memory."""
    gc.collect()
    gc.disable()
    try:
        replicas = make_replicas(net, x, half=True)
        graphs = replicas.search.net
        assert isinstance(graphs, Graphs)
        parts = [*graphs.both.values(), *graphs.forwards.values(), graphs, graphs.net, replicas.search, replicas.fine]
        assert len(parts) > 5
        held = [weakref.ref(part) for part in parts]
        del replicas, graphs, parts
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_nothing_is_collected_while_a_pass_is_recorded(cuda: FakeCuda, x: Tensor):
    """The end of an old recording would break off the new one."""
    enabled: list[bool] = []
    Graphs(lambda images: enabled.append(gc.isenabled()) or images.flatten(1) * 2)(x[:8])  # pyright: ignore[reportArgumentType]
    assert enabled == [*[True] * (len(enabled) - 1), False] and gc.isenabled()


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
