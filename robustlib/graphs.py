"""CUDA graphs: the hundreds of launches of a pass recorded once for each batch size, and played as one."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn


class Graphs:
    """A network whose passes are played from CUDA graphs, recorded at the first call of each batch size."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.forwards: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.both: dict[int, Callable[[Tensor], Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            if len(x) not in self.both:
                sample = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
                graphed = torch.cuda.make_graphed_callables(Call(self.net), (sample,))
                self.both[len(x)] = cast(Callable[[Tensor], Tensor], graphed)
            # The graph's output lives in its own memory, and the next call writes over it.
            return self.both[len(x)](x).clone()
        if len(x) not in self.forwards:
            self.forwards[len(x)] = record(self.net, x)
        graph, into, out = self.forwards[len(x)]
        into.copy_(x)
        graph.replay()
        return out.clone()


class Call(nn.Module):
    """A module of its own for each recording: make_graphed_callables changes the module that it is given."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@torch.no_grad()
def record(net: nn.Module, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    """A graph of the forward pass, the images that it reads and the logits that it writes."""
    into = x.detach().clone(memory_format=torch.preserve_format)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels here, which a recording must not see
        for _ in range(3):
            net(into)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = net(into)
    return graph, into, out
