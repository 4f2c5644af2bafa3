"""The exact copy of a model: on a CPU the same function to the bit, in less time."""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from robustlib.inference.copy_agreement import DIFFERENTIATED, two_values
from robustlib.inference.fast_copy import let_go
from robustlib.inference.fast_layers import HalvingPool, ReluPool, even
from robustlib.inference.graph_rewriting import halve, is_a, join_pool_and_relu, only_user, pool_first, replace, traced
from robustlib.inference.model_modes import copied
from robustlib.inference.replica import Replica
from robustlib.inference.wrappers import altered
from robustlib.memory import out_of_memory


def exact_copy(exact: Replica, model: nn.Module, sample: Tensor) -> Replica:
    """The model with every ReLU after its max-pooling, and the gradient of a BatchNorm taken where it is pooled: no
    value is computed otherwise, and a quarter as many are.

    exact: the model as given, at fixed batch sizes.  sample: some images, on which logits and gradients of both are
    compared.  Returns `exact` where the copy cannot be made, differs in a bit, or the device is no CPU.
    """
    if sample.is_cuda or not exact.sizes:
        return exact
    try:
        copy = exact.but(net=pooled_first(model), mode="float32, as given, pooled first")
        return copy if same_bits(exact, copy, sample) else exact
    except Exception as error:  # tracing a user's model may raise anything, and so may one without gradients
        if out_of_memory(error):
            raise
        return exact


def pooled_first(model: nn.Module) -> nn.Module:
    """The model, traced, with pooling before ReLU. Raises whatever tracing raises, ValueError where nothing changes,
    and for hooks: a layer that is put in another's place has none of its hooks, and no forward of its own.
    """
    if any(altered(layer) for layer in model.modules()):
        raise ValueError("a layer has hooks or a forward of its own")
    graph = traced(copied(model))
    pool_first(graph)
    halve(graph)
    join_pool_and_relu(graph)
    join_norm_and_pool(graph)
    if not any(name.startswith("quick_") for name, _ in graph.named_children()):
        raise ValueError("nothing to pool first")
    graph.delete_all_unused_submodules()
    graph.recompile()
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    let_go(graph)
    return graph


def join_norm_and_pool(graph: fx.GraphModule) -> None:
    """Put NormedPool where a ReluPool follows a BatchNorm with statistics of its own."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for pool in graph.graph.nodes:
        norm = pool.args[0] if is_a(pool, graph, ReluPool, ()) else None
        if not is_a(norm, graph, nn.BatchNorm2d, ()) or only_user(norm) is None or calls[norm.target] > 1:
            continue
        layer = graph.get_submodule(str(norm.target))
        if type(layer) is nn.BatchNorm2d and not layer.training and layer.running_mean is not None and layer.affine:
            before = norm.args[0]
            if is_a(before, graph, nn.Conv2d, ()) and only_user(before) is not None and calls[before.target] == 1:
                make_rising(graph.get_submodule(str(before.target)), layer)
            replace(pool, graph, NormedPool(layer), before)
            graph.graph.erase_node(norm)


@torch.no_grad()
def make_rising(conv: Any, norm: Any) -> None:
    """Turn the sign of the channels that a BatchNorm multiplies by a negative number, in both: their products stay."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return
    sign = torch.where(norm.weight < 0, -1.0, 1.0).to(norm.weight)
    for rows in (conv.weight, conv.bias, norm.weight, norm.running_mean):
        if rows is not None:
            rows.mul_(sign.reshape(-1, *[1] * (rows.ndim - 1)))


class NormedPool(nn.Module):
    """BatchNorm, ReLU and max-pooling of two by two pixels.

    Without a gradient to come the pooling goes first, where the BatchNorm keeps the order of numbers: rounding does
    too, and so the largest of four is the same. Of two that rounding makes one, another would get the gradient.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.norm = norm
        self.rising = bool((norm.weight >= 0).all())
        assert norm.running_var is not None
        self.register_buffer("narrow", (1 / torch.sqrt(norm.running_var.double() + norm.eps)).float())

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.relu(PooledAfter.apply(x, self.norm, self.narrow))  # pyright: ignore[reportArgumentType]
        if self.rising:
            return F.relu_(self.norm(HalvingPool()(x)))
        return ReluPool()(self.norm(x))


class PooledAfter(torch.autograd.Function):
    """The largest of four pixels after BatchNorm, whose scale the gradient gets while it still is one of four."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, narrow: Tensor) -> Tensor:
        normed = even(norm(x))  # all of it: of a part, PyTorch's BatchNorm has other last bits
        pooled, places = F.max_pool2d_with_indices(normed, [2, 2])
        ctx.save_for_backward(normed, places, narrow, norm.weight)
        ctx.shape = x.shape
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        normed, places, narrow, weight = ctx.saved_tensors
        scaled = gradients[0] * narrow[:, None, None] * weight[:, None, None]  # in PyTorch's order
        back = torch.ops.aten.max_pool2d_with_indices_backward(
            scaled, normed, [2, 2], [2, 2], [0, 0], [1, 1], False, places
        )
        height, width = (whole - part for whole, part in zip(ctx.shape[2:], normed.shape[2:], strict=True))
        return (F.pad(back, (0, width, 0, height)) if height or width else back), None, None


def same_bits(exact: Replica, copy: Replica, sample: Tensor) -> bool:
    """Whether logits of both are equal to the bit, and gradients on the first images."""
    few = sample[:DIFFERENTIATED]
    first, second = (each.values_and_grads(few, two_values) for each in (exact, copy))
    logits = torch.equal(exact(sample), copy(sample))
    return logits and all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
