"""CUDA graphs: the hundreds of launches of a pass recorded once for each batch size, and played as one.

Whatever a recording writes lies in memory of its own, over which the next replay writes. So what is given out here is
always a copy, and what a backward pass reads is kept until the graph goes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustlib.model_calls import Careful

NO_GRADIENT = (
    "the model's logits have no gradient with respect to its images (detached, or not differentiable): "
    "use an attack that needs none: square, spsa, nes, hopskipjump, noise or transfer"
)
WARM_UPS = 3  # passes in which libraries choose their kernels, which a recording must not see


class Graphs(Careful):
    """A network whose passes are played from CUDA graphs, recorded at the first call of each batch size."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.forwards: dict[torch.Size, Forward] = {}
        self.both: dict[torch.Size, Both] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            if x.shape not in self.both:
                self.both[x.shape] = record_both(self.net, x)
            return Played.apply(x, self.both[x.shape])  # pyright: ignore[reportReturnType]
        if x.shape not in self.forwards:
            self.forwards[x.shape] = record(self.net, x)
        forward = self.forwards[x.shape]
        forward.into.copy_(x)
        forward.graph.replay()
        return forward.out.clone()


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
def record(net: nn.Module, x: Tensor) -> Forward:
    """The forward pass on images shaped like these."""
    into = x.detach().clone(memory_format=torch.preserve_format)
    with on_a_stream_of(x) as stream:
        for _ in range(WARM_UPS):
            net(into)
    graph = torch.cuda.CUDAGraph()
    with recording(graph, x, stream):
        out = net(into)
    return Forward(graph, into, out)


@torch.enable_grad()
def record_both(net: nn.Module, x: Tensor) -> Both:
    """The forward pass and its gradient. Raises ValueError for a network without one.

    Not by torch.cuda.make_graphed_callables: that lets go of the activations while the gradient is recorded, whose own
    results are then written over them, so that only the first gradient of a pass is right.
    """
    into = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with on_a_stream_of(x) as stream:
        for _ in range(WARM_UPS):
            out = net(into.clone())  # which it may write into, as into no leaf
            if not out.requires_grad:
                raise ValueError(NO_GRADIENT)
            (back,) = torch.autograd.grad(out, into, torch.ones_like(out), allow_unused=True)
            if back is None:  # the logits depend on weights, but on no image
                raise ValueError(NO_GRADIENT)
            del out, back
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with recording(forward, x, stream):
        out = net(into.clone())
    given = torch.zeros_like(out)
    with recording(backward, x, stream, pool=forward.pool()):
        (back,) = torch.autograd.grad(out, into, given, retain_graph=True)
    return Both(forward, backward, into, out, given, back)


@contextmanager
def on_a_stream_of(x: Tensor) -> Iterator[torch.cuda.Stream]:
    """A stream of the images' device, which need not be the current one: all before is done there, and waits for it
    after.
    """
    with torch.cuda.device(x.device):
        stream, before = torch.cuda.Stream(x.device), torch.cuda.current_stream(x.device)
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield stream
        before.wait_stream(stream)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, x: Tensor, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """What is done within is recorded, on the stream and so on its device."""
    with torch.cuda.device(x.device):
        before = torch.cuda.current_stream(x.device)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                yield
        finally:
            torch.cuda.set_stream(before)  # a recording that fails does not leave its own
