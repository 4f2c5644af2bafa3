"""The affine head of a network: the layers before the first that bends, which straight lines go through as such.

At a point of a line between two images it need not be asked: what it gives there lies on the line between what it gives
for the two. And a sum of gradients goes back through it once, since its own gradient is the same everywhere.
"""

import operator
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from robustlib.inference.exact_copy import make_rising
from robustlib.inference.graph_rewriting import (
    MINUS,
    OVER,
    POOLS,
    RELUS,
    halved,
    is_a,
    normalises,
    only_user,
    pool_first,
    swap_calls,
)

AFFINE = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
PRODUCTS = (nn.Conv2d, nn.Linear)  # without one of these a head saves nothing
PLUS = (operator.add, torch.add, "add")
TIMES = (operator.mul, torch.mul, "mul")
FLATTENS = (torch.flatten, "flatten")


def split(graph: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule, bool]:
    """The affine head of a traced network in eval mode, the rest of it, and whether ReLU and max-pooling of two by two
    pixels go between the two, which then are part of neither.

    In the rest every ReLU and every BatchNorm comes after its max-pooling. That has the same values. Of two pixels that
    a BatchNorm's rounding makes one, the larger gets the gradient, where PyTorch gives it to the first.
    Raises ValueError where the network begins with nothing affine.
    """
    pool_first(graph)
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    chain = [images]
    while (after := only_user(chain[-1])) is not None and is_affine(after, graph, chain[-1]):
        chain.append(after)
    if not any(is_a(node, graph, kind, ()) for node in chain for kind in PRODUCTS):
        raise ValueError("the network begins with nothing affine that takes long")
    head = part(graph, chain, chain[-1], images)
    last = next(node for node in graph.graph.nodes if node.op == "output")
    rest = [node for node in graph.graph.nodes if node not in chain and node is not last]
    tail = part(graph, rest, last.args[0], chain[-1])
    norm_after_pool(tail)
    pooled = take_out_pool(tail)
    for layer in tail.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # it may be the first, whose input is kept
    for each in (head, tail):
        each.delete_all_unused_submodules()
        each.recompile()
    return head, tail, pooled


def is_affine(node: fx.Node, graph: fx.GraphModule, before: fx.Node) -> bool:
    """Whether what the node gives is an affine function of what the node before gives, and of nothing else."""
    if node.kwargs or not node.args:
        return False
    if node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        statistics = not isinstance(layer, nn.BatchNorm2d) or layer.running_mean is not None
        return node.args == (before,) and not layer.training and statistics and (
            type(layer) in AFFINE or normalises(layer)
        )  # fmt: skip
    if node.op not in ("call_function", "call_method"):
        return False
    others = [arg for arg in node.args if arg is not before]
    if len(others) != len(node.args) - 1 or not all(is_constant(arg) for arg in others):
        return False
    if node.target in (*FLATTENS, *OVER):
        return node.args[0] is before
    return node.target in (*PLUS, *MINUS, *TIMES) and len(others) == 1


def is_constant(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, fx.Node) and value.op == "get_attr")


def part(graph: fx.GraphModule, nodes: Sequence[fx.Node], given: object, images: fx.Node) -> fx.GraphModule:
    """The part of a network that these nodes are. given: what it gives.  images: the node whose values it takes."""
    found, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    copies[images] = found.placeholder("images")

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant that another part has too
            copies[node] = found.node_copy(node)
        return copies[node]

    for node in nodes:
        if node is not images and node.op != "get_attr":
            copies[node] = found.node_copy(node, copied)
    found.output(fx.map_arg(given, copied))  # pyright: ignore[reportArgumentType]
    return fx.GraphModule(graph, found)


def norm_after_pool(graph: fx.GraphModule) -> None:
    """Swap every BatchNorm of a convolution with the max-pooling after it, where it keeps the order of numbers, or does
    with the signs of some channels turned.
    """
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for pool in graph.graph.nodes:
        norm = pool.args[0] if is_a(pool, graph, nn.MaxPool2d, POOLS) and pool.args else None
        if not is_a(norm, graph, nn.BatchNorm2d, ()) or only_user(norm) is None or calls[norm.target] > 1:
            continue
        if pool.op == "call_module" and graph.get_submodule(str(pool.target)).return_indices:
            continue
        layer, before = graph.get_submodule(str(norm.target)), norm.args[0]
        if type(layer) is not nn.BatchNorm2d or layer.training or layer.running_mean is None or not layer.affine:
            continue
        if is_a(before, graph, nn.Conv2d, ()) and only_user(before) is not None and calls[before.target] == 1:
            make_rising(graph.get_submodule(str(before.target)), layer)
        if bool((layer.weight >= 0).all()):
            swap_calls(norm, pool)


def take_out_pool(graph: fx.GraphModule) -> bool:
    """Take out ReLU after max-pooling of two by two pixels, where the network begins with these two."""
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    pool = only_user(images)
    if not is_a(pool, graph, nn.MaxPool2d, POOLS) or halved(pool, graph) is not images:
        return False
    relu = only_user(pool)
    if not is_a(relu, graph, nn.ReLU, RELUS):
        return False
    relu.replace_all_uses_with(images)
    graph.graph.erase_node(relu)
    graph.graph.erase_node(pool)
    return True


def pooled_relu(x: Tensor) -> Tensor:
    """What `take_out_pool` takes out."""
    return nn.functional.relu(nn.functional.max_pool2d(x, 2))
