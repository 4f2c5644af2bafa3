"""The search in a folded network for convolutions that one call can compute with the addition and the ReLU after them.

For CUDA devices: see `cudnn_layers`.
"""

import operator

import torch
from torch import fx, nn

from robustlib.inference.cudnn_layers import ConvRelu, Geometry, Pair
from robustlib.inference.fast_layers import ReluPool
from robustlib.inference.folded_layers import Folded, Normalized
from robustlib.inference.graph_rewriting import POOLS, RELUS, is_a, only_user, pair

ADDS = (operator.add, torch.add, "add")
ADDS_IN_PLACE = (operator.iadd, "add_")
ALL_RELUS = (*RELUS, torch.relu_, "relu_")


def fuse(net: nn.Module) -> int:
    """Put ConvRelu wherever a convolution's only user is a ReLU, an addition whose only user is one, or a max-pooling
    before one. Returns how many there are.

    net: what `fold` made.
    """
    graph = net.inner if isinstance(net, Normalized) else net
    assert isinstance(graph, fx.GraphModule)
    found = fuse_relus(graph) + fuse_pools(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return found


def fuse_relus(graph: fx.GraphModule) -> int:
    found = 0
    for relu in list(graph.graph.nodes):
        before = relu.args[0] if relu.args else None
        if not is_a(relu, graph, nn.ReLU, ALL_RELUS) or not isinstance(before, fx.Node) or len(before.users) > 1:
            continue
        conv, addend = before, None
        if (operands := added(before)) is not None:
            conv, addend = next((way for way in operands if geometry_of(way[0], graph)), (before, None))
        if (geometry := geometry_of(conv, graph)) is None:
            continue
        with graph.graph.inserting_before(relu):
            given = (conv.args[0],) if addend is None else (conv.args[0], addend)
            relu.replace_all_uses_with(graph.graph.call_module(put(graph, conv, geometry), given))
        for node in dict.fromkeys((relu, before, conv)):
            graph.graph.erase_node(node)
        found += 1
    return found


def fuse_pools(graph: fx.GraphModule) -> int:
    """The largest of values after ReLU is ReLU of the largest: the convolution's own ReLU changes nothing there."""
    found = 0
    for conv in graph.graph.nodes:
        if (geometry := geometry_of(conv, graph)) is None:
            continue
        pool = only_user(conv)
        then = only_user(pool) if is_a(pool, graph, nn.MaxPool2d, POOLS) else None
        if is_a(pool, graph, ReluPool, ()) or is_a(then, graph, nn.ReLU, ALL_RELUS):
            conv.target = put(graph, conv, geometry, masked=False)
            found += 1
    return found


def put(graph: fx.GraphModule, conv: fx.Node, geometry: Geometry, masked: bool = True) -> str:
    """Make the layer that computes the convolution with its ReLU; the name that it has in the network."""
    name = f"fused_{conv.name}"
    graph.add_submodule(name, ConvRelu(graph.get_submodule(str(conv.target)), geometry, masked))
    return name


def added(node: fx.Node) -> list[tuple[fx.Node, fx.Node]] | None:
    """What the node adds, in either order, if that is all it does."""
    functions = node.op in ("call_function", "call_method")
    if not functions or node.target not in (*ADDS, *ADDS_IN_PLACE) or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    # In place of another tensor than the convolution's, which somebody might look at afterwards.
    return [(first, second)] if node.target in ADDS_IN_PLACE else [(first, second), (second, first)]


def geometry_of(node: fx.Node, graph: fx.GraphModule) -> Geometry | None:
    """Of a folded convolution that one other node uses, and whose padding is of as many zeros on either side.

    One kernel for each channel is left to PyTorch, which has kernels of its own for that.
    """
    if not is_a(node, graph, Folded, ()) or len(node.users) != 1 or len(node.args) != 1 or node.kwargs:
        return None
    layer = graph.get_submodule(str(node.target))
    assert isinstance(layer, Folded)
    conv = layer.sources[0]
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or conv.groups == conv.in_channels > 1:
        return None
    padding = padding_of(conv)
    return None if padding is None else Geometry(pair(conv.stride), padding, pair(conv.dilation), conv.groups)


def padding_of(conv: nn.Conv2d) -> Pair | None:
    """None where it is more on one side than on the other."""
    if not isinstance(conv.padding, str):
        return pair(conv.padding)
    # Pairs of the last axis, then of the one before it.
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return (top, left) if (left, top) == (right, bottom) else None
