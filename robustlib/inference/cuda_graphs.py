"""CUDA graphs: the hundreds of launches of a pass recorded once for each batch size, and played as one.

Whatever a recording writes lies in memory of its own, over which the next replay writes. So what is given out here is
always a copy, and what a backward pass reads is kept until the graph goes.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustlib.gpu_failures import chain
from robustlib.model_calls import Careful
from robustlib.number_text import counted

NO_GRADIENT = (
    "the model's logits have no gradient with respect to its images (detached, or not differentiable): "
    "use an attack that needs none: square, spsa, nes, hopskipjump, noise or transfer"
)
WARM_UPS = 3  # passes in which libraries choose their kernels, which a recording must not see

# Up to torch 2.12 the allocator goes on with a recording that failed, and raises whenever it is to give memory back, as
# it is before each recording: https://github.com/pytorch/pytorch/issues/180395.
NEVER_FORGETS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
spoilt: list[str] = []  # why this process records no more


class RecordingFailed(RuntimeError):
    """A pass cannot be recorded: it looks at numbers, or memory ran out in a way that CUDA tells as another error."""


def no_recordings() -> str:
    """Why this process makes no recordings; empty where it does."""
    return f"no graphs: one that failed spoilt this process ({spoilt[0]})" if spoilt else ""


class Graphs(Careful):
    """A network whose passes are played from CUDA graphs, recorded at the first call of each batch size.

    All lie in one pool of memory, so that they take as much as the largest: no two play at once, and what one keeps for
    later is in nobody else's way.
    """

    def __init__(self, net: nn.Module):
        self.net = net
        self.forwards: dict[torch.Size, Forward] = {}
        self.both: dict[torch.Size, Both] = {}
        self.pool: Any = None
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            if x.shape not in self.both:
                self.both[x.shape] = record_both(self.net, x, *self.place(x))
            return Played.apply(x, self.both[x.shape])  # pyright: ignore[reportReturnType]
        if x.shape not in self.forwards:
            self.forwards[x.shape] = record(self.net, x, *self.place(x))
        forward = self.forwards[x.shape]
        forward.into.copy_(x)
        forward.graph.replay()
        return forward.out.clone()

    def place(self, x: Tensor) -> tuple[Any, torch.cuda.Stream]:
        """The pool of its recordings and their stream: memory is shared by recordings of one stream."""
        if self.stream is None or self.pool is None:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(x.device)
        return self.pool, self.stream

    def forget(self, beyond: int) -> None:
        """Let go of recordings of more images than these. Their pool is given back when the last of it has gone: so all
        go, where they can be made again.
        """
        if not any(len_of > beyond for len_of, *_ in (*self.forwards, *self.both)):
            return
        for recordings in (self.forwards, self.both):
            for shape in [shape for shape in recordings if shape[0] > beyond or not spoilt]:
                del recordings[shape]
        if not spoilt:
            self.pool = self.stream = None


@dataclass
class Forward:
    """A recorded pass: the images that it reads, and the logits that it writes."""

    graph: torch.cuda.CUDAGraph
    into: Tensor
    out: Tensor


@dataclass
class Both:
    """A pass and its gradient. `out` keeps the activations that the recorded gradient reads, however often it is
    played.

    given: what the gradient is taken of, shaped like the logits.  back: the images' gradient.  turn: passes so far.
    """

    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph
    into: Tensor
    out: Tensor
    given: Tensor
    back: Tensor
    turn: int = 0


class Played(torch.autograd.Function):
    """A recorded pass, whose gradient may be asked for several times, until the next pass of the same recording."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, both: Both) -> Tensor:
        with torch.no_grad():
            both.into.copy_(x)
        both.forward.replay()
        both.turn += 1
        ctx.both, ctx.turn = both, both.turn
        return both.out.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        both: Both = ctx.both
        if ctx.turn != both.turn:
            raise RuntimeError("the recorded pass was played again since, and its activations are gone")
        both.given.copy_(gradients[0])
        both.backward.replay()
        return both.back.clone(), None


@torch.no_grad()
def record(net: nn.Module, x: Tensor, pool: Any = None, stream: torch.cuda.Stream | None = None) -> Forward:
    """The forward pass on images shaped like these. Raises RecordingFailed."""
    into = x.detach().clone(memory_format=torch.preserve_format)
    with on_a_stream_of(x, stream) as stream:
        for _ in range(WARM_UPS):
            net(into)
        with no_waits():
            net(into)
    graph = torch.cuda.CUDAGraph()
    with recording(graph, x, stream, pool):
        out = net(into)
    return Forward(graph, into, out)


@torch.enable_grad()
def record_both(net: nn.Module, x: Tensor, pool: Any = None, stream: torch.cuda.Stream | None = None) -> Both:
    """The forward pass and its gradient. Raises ValueError for a network without one, RecordingFailed.

    Not by torch.cuda.make_graphed_callables: that lets go of the activations while the gradient is recorded, whose own
    results are then written over them, so that only the first gradient of a pass is right.
    """
    into = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with on_a_stream_of(x, stream) as stream:
        for _ in range(WARM_UPS):
            out = net(into.clone())  # which it may write into, as into no leaf
            if not out.requires_grad:
                raise ValueError(NO_GRADIENT)
            (back,) = torch.autograd.grad(out, into, torch.ones_like(out), allow_unused=True)
            if back is None:  # the logits depend on weights, but on no image
                raise ValueError(NO_GRADIENT)
            del out, back
        with no_waits():
            torch.autograd.grad(out := net(into.clone()), into, torch.ones_like(out))
            del out
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with recording(forward, x, stream, pool):
        out = net(into.clone())
    given = torch.zeros_like(out)
    with recording(backward, x, stream, forward.pool() if pool is None else pool):
        (back,) = torch.autograd.grad(out, into, given, retain_graph=True)
    return Both(forward, backward, into, out, given, back)


@contextmanager
def on_a_stream_of(x: Tensor, stream: torch.cuda.Stream | None = None) -> Iterator[torch.cuda.Stream]:
    """A stream of the images' device, which need not be the current one: all before is done there, and waits for it
    after.
    """
    with torch.cuda.device(x.device):
        stream = torch.cuda.Stream(x.device) if stream is None else stream
        before = torch.cuda.current_stream(x.device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield stream
        before.wait_stream(stream)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, x: Tensor, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """What is done within is recorded, on the stream and so on its device. Raises RecordingFailed."""
    if spoilt:
        raise RecordingFailed(no_recordings())
    with torch.cuda.device(x.device), no_collection():
        before = torch.cuda.current_stream(x.device)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                yield
        except Exception as error:
            *_, first = chain(error)  # the network's own, which the end of the recording hides
            text = f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
            if NEVER_FORGETS:
                spoilt.append(text)
            raise RecordingFailed(f"a pass of {counted(len(x), 'image')} cannot be recorded: {text}") from error
        finally:
            torch.cuda.set_stream(before)  # a recording that fails does not leave its own


@contextmanager
def no_waits() -> Iterator[None]:
    """A pass that waits for the device, as where it looks at a number, raises RecordingFailed; a recording of it would
    fail. Where that costs nothing but the recording, it is left to find out.
    """
    if not NEVER_FORGETS or spoilt:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" in str(error):
            raise RecordingFailed(f"the network waits for the device: {error}") from error
        raise
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def no_collection() -> Iterator[None]:
    """Garbage may be an old recording, whose end breaks off one that is being made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
