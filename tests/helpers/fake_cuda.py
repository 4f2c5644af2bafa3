"""CUDA graphs on a CPU: what is recorded is played again on the memory that it was recorded on.

As on a device, a recording refuses what needs a number at once; a replay writes over whatever the one before left
there; and memory that was let go of while a graph was recorded is spoilt by that graph's replays, since on a device
others have it by then.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from robustlib.inference import cuda_graphs
from tests.helpers.torch_errors import AcceleratorError


@dataclass
class Block:
    """Memory of a recording: that of a tensor, while somebody has it, and what lay in its place afterwards."""

    owner: StorageWeakRef
    nbytes: int
    left: torch.UntypedStorage | None = None

    def storage(self) -> torch.UntypedStorage:
        if not self.owner.expired():
            return torch.UntypedStorage._new_with_weak_ptr(self.owner.cdata)
        if self.left is None:
            self.left = torch.full((self.nbytes,), 255, dtype=torch.uint8).untyped_storage()
        return self.left

    def spoil(self) -> None:
        """Every byte 255, which makes NaN of any float and -1 of any integer."""
        if self.owner.expired():
            torch.empty(0, dtype=torch.uint8).set_(self.storage()).fill_(255)


@dataclass
class Place:
    """A tensor as a recording knows it."""

    block: Block
    like: tuple[torch.dtype, Any, torch.Size, tuple[int, ...]]

    def tensor(self) -> Tensor:
        dtype, offset, size, stride = self.like
        return torch.empty(0, dtype=dtype).set_(self.block.storage(), offset, size, stride)


class Memory:
    """The blocks of all recordings: a graph may read what another one wrote."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}

    def place(self, tensor: Tensor) -> Place:
        storage = tensor.untyped_storage()
        # A weak reference keeps the number its own, also when the memory has gone.
        block = self.blocks.setdefault(storage._cdata, Block(StorageWeakRef(storage), storage.nbytes()))
        return Place(block, (tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()))

    def held(self) -> list[Block]:
        return [block for block in self.blocks.values() if not block.owner.expired()]


@dataclass
class Graph:
    """What torch.cuda.CUDAGraph is."""

    memory: Memory
    calls: list[tuple[Any, Any, Any, Any]] = field(default_factory=list)
    freed: list[Block] = field(default_factory=list)

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, results in self.calls:
            found = function(*tensors_of(args), **tensors_of(kwargs))
            for came, place in zip(leaves_of(found), leaves_of(tensors_of(results)), strict=True):
                if isinstance(came, Tensor) and came.data_ptr() != place.data_ptr():
                    place.copy_(came)
        for block in self.freed:
            block.spoil()


def tensors_of(value: Any) -> Any:
    """With tensors for places: what tree_map_only does, in a tenth of its time."""
    if isinstance(value, Place):
        return value.tensor()
    if isinstance(value, list | tuple):
        return type(value)(tensors_of(each) for each in value)
    return {name: tensors_of(each) for name, each in value.items()} if isinstance(value, dict) else value


def storages_of(value: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def leaves_of(value: Any) -> list[Any]:
    return [leaf for each in value for leaf in leaves_of(each)] if isinstance(value, list | tuple) else [value]


# What needs a number, or a shape that depends on one, from the device: a recording does not hold it.
LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}


def looks_at_numbers(func: Any, args: Any) -> bool:
    name = func.overloadpacket.__name__
    by_mask = any(isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1:2]))
    return name in LOOKS or (name in ("index", "index_put", "index_put_") and by_mask)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}  # what lay there already
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if looks_at_numbers(func, args):
            raise RuntimeError("operation not permitted when stream is capturing")
        asked = tree_map_only(Tensor, self.graph.memory.place, (args, kwargs or {}))
        for storage in storages_of((args, kwargs)):
            if storage._cdata not in self.made:
                self.before[storage._cdata] = self.before.get(storage._cdata) or (storage, storage.clone())
        found = func(*args, **(kwargs or {}))
        self.made |= {storage._cdata for storage in storages_of(found)} - self.before.keys()
        self.graph.calls.append((func, *asked, tree_map_only(Tensor, self.graph.memory.place, found)))
        return found

    def put_back(self) -> None:
        """On a device nothing is computed while it is recorded."""
        for storage, before in self.before.values():
            storage.copy_(before)


@dataclass
class Stream:
    device: object = None

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


class FakeCuda:
    """The names of torch.cuda that recordings use. refuses: what a recording ends with instead of a graph."""

    def __init__(self) -> None:
        self.memory, self.now, self.refuses = Memory(), Stream(), ""
        self.devices: list[object] = []  # that were made the current one
        self.streams: list[Stream] = []  # on which was recorded
        self.pools: list[Any] = []  # in which
        self.handles, self.sync_debug = count(1), 0

    @contextmanager
    def graph(self, graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> Iterator[None]:
        before, self.now = self.now, stream or Stream()
        self.streams.append(self.now)
        self.pools.append(pool)
        held = self.memory.held()
        recorder = Recorder(graph)
        try:
            with recorder:
                yield
        except Exception as error:  # which the end of a recording hides
            raise AcceleratorError("CUDA error: operation failed due to a previous error during capture") from error
        finally:
            recorder.put_back()
            recorder.before.clear()
        if self.refuses:  # as torch.cuda.graph then does, which stays on its stream
            raise RuntimeError(self.refuses)
        inside = [place.block for call in graph.calls for place in tree_leaves(call[1:]) if isinstance(place, Place)]
        known = {id(block): block for block in (*held, *inside)}.values()
        graph.freed = [block for block in known if block.owner.expired()]
        self.now = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    def device(self, device: object) -> AbstractContextManager[None]:
        self.devices.append(device)
        return nullcontext()

    def set_stream(self, stream: Stream) -> None:
        self.now = stream


def install(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put it in the place of torch.cuda, for tensors on the CPU: that of a PyTorch which forgets failed recordings."""
    fake = FakeCuda()
    monkeypatch.setattr(cuda_graphs, "NEVER_FORGETS", False)
    monkeypatch.setattr(cuda_graphs, "spoilt", [])
    names = {
        "CUDAGraph": lambda *_, **__: Graph(fake.memory),
        "graph": fake.graph,
        "Stream": Stream,
        "stream": fake.stream,
        "current_stream": lambda *_: fake.now,
        "set_stream": fake.set_stream,
        "device": fake.device,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "graph_pool_handle": lambda: (0, next(fake.handles)),
        "get_sync_debug_mode": lambda: fake.sync_debug,
        "set_sync_debug_mode": lambda mode: setattr(fake, "sync_debug", mode),
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda.graphs, "graph_pool_handle", lambda: (0, 1))
    return fake
