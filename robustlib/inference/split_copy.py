"""The copy of a model in parts, for sums of gradients: an affine head and the rest, on a CPU."""

import torch
from torch import Tensor, nn

from robustlib.inference.affine_head import split
from robustlib.inference.copy_agreement import FLOAT32_TURN, OTHER, OTHERS, turns, two_values
from robustlib.inference.fast_copy import let_go
from robustlib.inference.graph_rewriting import SteadyTracer, traced
from robustlib.inference.model_modes import copied, no_autocast
from robustlib.inference.replica import Replica
from robustlib.inference.split_replica import Split, SplitReplica
from robustlib.inference.wrappers import altered
from robustlib.memory import out_of_memory

LINES = 4  # images whose sums are compared
PLACES, SHARES = (0.2, 0.9), (0.25, 0.75)  # of the points, and their weights


def split_copy(replica: Replica, model: nn.Module, sample: Tensor) -> Replica:
    """The replica with sums of gradients by the model in parts.

    sample: some images, on which sums of both are compared.  Returns the replica itself where the model cannot be
    split, the sums differ by more than rounding does, or the device is no CPU.
    """
    if sample.is_cuda or not replica.sizes:
        return replica
    try:
        copy = SplitReplica(in_parts(model, replica.memory_format), **replica.settings())
        return copy if same_sums(replica, copy, sample) else replica
    except Exception as error:  # tracing a user's model may raise anything, and so may one without gradients
        if out_of_memory(error):
            raise
        return replica


def in_parts(model: nn.Module, memory_format: torch.memory_format) -> Split:
    """The model, traced and split. Raises whatever tracing raises, and ValueError as `split` and `SteadyTracer` do,
    for hooks and for forwards that are a layer's own.
    """
    if any(altered(layer) for layer in model.modules()):
        raise ValueError("a layer has hooks or a forward of its own")
    with torch.enable_grad(), no_autocast():
        graph = traced(copied(model), SteadyTracer())
    head, tail, pooled = split(graph)
    for net in (head, tail):
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        net.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        let_go(net)
    return Split(head, tail, pooled)


def same_sums(replica: Replica, copy: Replica, sample: Tensor) -> bool:
    """Whether sums of gradients of both are the same but for rounding, at points of a line and at any."""
    start, end = torch.zeros_like(sample[:LINES]), sample[:LINES]

    def loss(logits: Tensor) -> Tensor:
        return two_values(logits)[:, 0]

    def point(k: int) -> Tensor:
        return start + PLACES[k] * (end - start)

    expected = replica.gradient_sum(end, point, SHARES, loss)
    for found in (
        copy.gradient_sum(end, point, SHARES, loss),
        copy.line_gradient_sum(start, end, PLACES, SHARES, loss),
    ):
        turned = turns(found[:, None], expected[:, None])
        if not turned.mean() <= FLOAT32_TURN or (turned > OTHER).float().mean() > OTHERS:
            return False
    return True
