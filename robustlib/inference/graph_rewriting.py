"""The folded form of a network: the same function with less work, for attacks to search on.

Whoever uses it compares the result with the original network.
"""

import operator
from collections import Counter
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustlib.inference.fast_layers import HalvingPool, ReluPool, SteadyLinear, WideLinear
from robustlib.inference.folded_layers import Folded, Normalized


def fold(model: nn.Module) -> nn.Module:
    """The model with each BatchNorm folded into its convolution, ReLU after max-pooling instead of before it,
    normalisation and logits kept in float32. Layers with weights that cannot be folded are the model's own.

    Raises whatever tracing the model raises.
    """
    graph = traced(model)
    fold_layers(graph)
    pool_first(graph)
    halve(graph)
    join_pool_and_relu(graph)
    widen_logits(graph)
    normalisation = take_out_normalisation(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph if normalisation is None else Normalized(*normalisation, graph)


class Tracer(fx.Tracer):
    """Does not look into torchvision's Normalize, which asks what its images are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return normalises(m) or super().is_leaf_module(m, module_qualified_name)


class SteadyTracer(Tracer):
    """Raises ValueError where a model switches gradients off, or autocast on, for some layers: no graph keeps that."""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if not torch.is_grad_enabled() or any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")):
            raise ValueError("the model switches gradients off, or autocast on, for some of its layers")
        return super().create_node(*args, **kwargs)


def traced(model: nn.Module, tracer: Tracer | None = None) -> fx.GraphModule:
    """The model as a graph. Raises whatever tracing raises, and ValueError for a black box, which is not asked: a
    function of somebody else's would get what are no images, and may count or send them.
    """
    if any(hasattr(layer, "call_lock") for layer in model.modules()):
        raise ValueError("no trace goes through a black box")
    tracer = tracer or Tracer()
    graph = tracer.trace(model)
    return fx.GraphModule(tracer.root, graph, type(model).__name__)


def normalises(layer: nn.Module) -> bool:
    """Whether it is torchvision's, of either version; told by name, since torchvision takes long to load."""
    kind = type(layer)
    return kind.__name__ == "Normalize" and kind.__module__.startswith("torchvision.transforms.")


RELUS = (torch.relu, F.relu, torch.Tensor.relu, "relu")
POOLS = (torch.max_pool2d, F.max_pool2d)
MINUS = (operator.sub, torch.sub, "sub")
OVER = (operator.truediv, torch.div, "div")


def is_a(
    node: object, graph: fx.GraphModule, kind: type[nn.Module] | None, functions: tuple[object, ...]
) -> TypeGuard[fx.Node]:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        return kind is not None and isinstance(graph.get_submodule(str(node.target)), kind)
    return node.op in ("call_function", "call_method") and node.target in functions


def fold_layers(graph: fx.GraphModule) -> None:
    """Put Folded in the place of every convolution, with its BatchNorm where it has one, and of every linear layer."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    kinds = (nn.Conv2d, nn.Linear)
    for node in [node for node in graph.graph.nodes if any(is_a(node, graph, kind, ()) for kind in kinds)]:
        layer = graph.get_submodule(str(node.target))
        # A subclass may do something else, and a layer that is called twice has a BatchNorm for each.
        if type(layer) not in kinds or calls[node.target] > 1:
            continue
        after, norm = only_user(node), None
        if is_a(after, graph, nn.BatchNorm2d, ()) and type(layer) is nn.Conv2d and calls[after.target] == 1:
            found = graph.get_submodule(str(after.target))
            assert isinstance(found, nn.BatchNorm2d)
            norm = None if found.training or found.running_mean is None else found
        if norm is not None:
            assert after is not None
            after.replace_all_uses_with(node)
            graph.graph.erase_node(after)
            graph.delete_submodule(str(after.target))
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        graph.set_submodule(str(node.target), Folded(layer, norm))


def pool_first(graph: fx.GraphModule) -> None:
    """Swap every ReLU with the max-pooling after it: the same values and gradients, and a quarter of the ReLUs."""
    for pool in graph.graph.nodes:
        relu = pool.args[0] if pool.args else None
        if not is_a(pool, graph, nn.MaxPool2d, POOLS) or not is_a(relu, graph, nn.ReLU, RELUS):
            continue
        if len(relu.users) > 1:
            continue
        if pool.op == "call_module" and graph.get_submodule(str(pool.target)).return_indices:
            continue
        swap_calls(relu, pool)


def swap_calls(first: fx.Node, second: fx.Node) -> None:
    """Let the second be called before the first, whose only user it is."""
    source, how = first.args[0], (second.op, second.target, second.args[1:], second.kwargs)
    second.op, second.target, second.kwargs = first.op, first.target, first.kwargs
    second.args = (first, *first.args[1:])
    first.op, first.target, first.kwargs = how[0], how[1], how[3]
    first.args = (source, *how[2])


def halve(graph: fx.GraphModule) -> None:
    """Put HalvingPool wherever a layer or a function does the same."""
    for node in graph.graph.nodes:
        if is_a(node, graph, nn.MaxPool2d, POOLS) and (source := halved(node, graph)) is not None:
            replace(node, graph, HalvingPool(), source)


def halved(pool: fx.Node, graph: fx.GraphModule) -> fx.Node | None:
    """What a max-pooling makes half as high and wide, if it does that and nothing else."""
    if pool.op == "call_module":
        layer = graph.get_submodule(str(pool.target))
        assert isinstance(layer, nn.MaxPool2d)
        how: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        odd = layer.return_indices or layer.ceil_mode
    else:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        given: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1}
        given |= dict(zip(names, pool.args, strict=False)) | pool.kwargs
        how = (given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"], given["dilation"])
        odd = bool(given.get("ceil_mode")) or bool(given.get("return_indices"))
    source = pool.args[0] if pool.args else None
    plain = not odd and [pair(value) for value in how] == [(2, 2), (2, 2), (0, 0), (1, 1)]
    return source if plain and isinstance(source, fx.Node) else None


def join_pool_and_relu(graph: fx.GraphModule) -> None:
    """Put ReluPool where a ReLU follows HalvingPool."""
    for pool in graph.graph.nodes:
        relu = only_user(pool) if is_a(pool, graph, HalvingPool, ()) else None
        if is_a(relu, graph, nn.ReLU, RELUS):
            relu.replace_all_uses_with(pool)
            graph.graph.erase_node(relu)
            replace(pool, graph, ReluPool(), pool.args[0])


def replace(node: fx.Node, graph: fx.GraphModule, layer: nn.Module, source: Any) -> None:
    """The node now calls this layer with the source."""
    name = f"quick_{node.name}"
    graph.add_submodule(name, layer)
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


def pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def widen_logits(graph: fx.GraphModule) -> None:
    """Keep the last layer in float32, where it is a linear one."""
    (last,) = next(node for node in graph.graph.nodes if node.op == "output").args
    if is_a(last, graph, Folded, ()) and len(last.users) == 1:
        layer = graph.get_submodule(str(last.target))
        if not isinstance(layer, Folded) or layer.weight.ndim != 2:
            return
        graph.set_submodule(str(last.target), WideLinear(layer))


def steady_linear(net: nn.Module) -> None:
    """Put SteadyLinear in the place of every linear layer: for CPUs."""
    for name, child in net.named_children():
        linear = child.sources[0] if isinstance(child, Folded) else child
        if type(linear) is nn.Linear:
            setattr(net, name, SteadyLinear(child))
        else:
            steady_linear(child)


def take_out_normalisation(graph: fx.GraphModule) -> tuple[Tensor, Tensor] | None:
    """Where the network begins with (x - mean) / std, its mean and std; the graph then is without it."""
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    minus = only_user(images)
    if is_a(minus, graph, nn.Module, ()) and normalises(layer := graph.get_submodule(str(minus.target))):
        minus.replace_all_uses_with(images)
        graph.graph.erase_node(minus)
        device = next((weight.device for weight in graph.parameters()), None)
        mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (layer.mean, layer.std))
        return mean.reshape(-1, 1, 1).to(device), std.reshape(-1, 1, 1).to(device)
    over = only_user(minus) if is_a(minus, graph, None, MINUS) else None
    if not is_a(minus, graph, None, MINUS) or not is_a(over, graph, None, OVER):
        return None
    mean, std = constant(graph, minus, images), constant(graph, over, minus)
    if mean is None or std is None:
        return None
    over.replace_all_uses_with(images)
    graph.graph.erase_node(over)
    graph.graph.erase_node(minus)
    graph.graph.eliminate_dead_code()
    return mean, std


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def constant(graph: fx.GraphModule, node: fx.Node, of: fx.Node) -> Tensor | None:
    """The module's tensor, one number a channel, that the node combines `of` with, if that is all it does."""
    if len(node.args) != 2 or node.kwargs or node.args[0] is not of:
        return None
    other = node.args[1]
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return None
    value = operator.attrgetter(str(other.target))(graph)
    return value if isinstance(value, Tensor) and value.ndim in (3, 4) else None
