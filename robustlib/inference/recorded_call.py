"""A function of tensors that stay where they are, recorded as one CUDA graph and played for whatever they hold."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlib.inference.cuda_graphs import WARM_UPS, on_a_stream_of, recording
from robustlib.inference.replica import Replica
from robustlib.model_calls import rows_of


@dataclass(frozen=True)
class RecordedCall:
    """Called, it does what the function did, on what its tensors hold now. function: kept for the tensors' sake."""

    graph: torch.cuda.CUDAGraph
    function: Callable[[], None]

    def __call__(self) -> None:
        self.graph.replay()


@torch.no_grad()
def record_call(function: Callable[[], None], *written: Tensor) -> RecordedCall:
    """Record a function that looks at no number: what is to change from call to call lies in tensors.

    written: all tensors of its caller's that it writes into, one at least. A recording runs the function some times,
    so they are put back. Raises whatever the function or the recording does.
    """
    before = [tensor.clone() for tensor in written]
    graph = torch.cuda.CUDAGraph()
    try:
        with on_a_stream_of(written[0]) as stream:
            for _ in range(WARM_UPS):
                function()
        with recording(graph, written[0], stream):
            function()
    finally:
        for tensor, held in zip(written, before, strict=True):
            tensor.copy_(held)
    return RecordedCall(graph, function)


def logits_in_kernels(model: Replica, x: Tensor) -> Tensor:
    """The model's logits, float32, for at most as many images as one pass takes, by nothing but kernels: to be called
    within what is recorded. They are not counted, nor is what half precision cannot hold computed anew.
    """
    net = model.asked().net
    images = model.fill(x)
    with model.arithmetic():
        return rows_of(net(images), len(images))[: len(x)].float()
