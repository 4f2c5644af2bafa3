"""The copy of a model that attacks search on: the same function in the quickest safe form that the device has.

What a search finds counts only once the original model agrees, so the copy may differ by rounding, and by nothing else:
each form is compared with the original on real images, and given up for a plainer one where it differs or cannot be
made.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from robustlib.engine import Count, Engine, Net, batch_sizes
from robustlib.graphs import Graphs
from robustlib.modes import layout

# How far a copy's logits may lie from the original's, in units of the logits' standard deviation: ours. Rounding of
# float32 stays far below the first, that of half precision below the second; a copy that does something else does not.
FLOAT32_DRIFT = 1e-3
HALF_DRIFT = 0.1


@dataclass(frozen=True)
class Engines:
    """A model twice: as it judges (`exact`, the original in float32) and as attacks search (`search`)."""

    exact: Engine
    search: Engine

    @property
    def passes(self) -> Count:
        """Examples passed forward and back so far, by both."""
        counts = {id(engine): engine.count for engine in (self.exact, self.search)}.values()
        return Count(sum(count.forwards for count in counts), sum(count.gradients for count in counts))


def make_engines(model: nn.Module, sample: Tensor, *, half: bool | None = None) -> Engines:
    """Engines for a model in eval mode on its device; the search copy in the quickest form that agrees with the model.

    sample: some images, on the device.  half: search in half precision; where it is None, on CUDA devices only.
    """
    cuda = sample.device.type == "cuda"
    exact = exact_engine(model, sample)
    if not exact.sizes:
        return Engines(exact, exact)
    reference = exact(sample)
    search = exact
    for make in forms(model, exact.sizes, cuda if half is None else half, cuda):
        candidate = attempt(make, sample, reference)
        if candidate is not None:
            search = candidate
            break
    if cuda:
        warm_up(search, sample)
    exact.count, search.count = Count(), Count()
    return Engines(exact, search)


def warm_up(engine: Engine, sample: Tensor) -> None:
    """Record the graphs of every batch size, so that no attack's seconds hold them; sizes that do not fit are left."""
    for size in engine.sizes:
        x = sample.repeat(-(-size // len(sample)), *[1] * (sample.ndim - 1))[:size]
        engine(x)
        engine.differentiate(x, lambda z: z[:, :1])


def exact_engine(model: nn.Module, sample: Tensor) -> Engine:
    """The original model; without fixed sizes where its logits depend on who else is in the batch."""
    engine = Engine(model, sizes=batch_sizes(sample), memory_format=layout(model), mode="float32, as given")
    few = sample[:7]
    with torch.no_grad():
        alone = model(few.contiguous(memory_format=engine.memory_format))
    if not torch.allclose(engine(few), alone, rtol=1e-4, atol=1e-4):
        return Engine(
            model, sizes=(), memory_format=engine.memory_format, mode="float32, as given, batches as they come"
        )
    return engine


def forms(model: nn.Module, sizes: tuple[int, ...], half: bool, cuda: bool) -> list[Callable[[], Engine]]:
    """Ways to make the search copy, the quickest first."""
    ways: list[Callable[[], Engine]] = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32) if half else (torch.float32,):
        for make in (folded, plain):
            for graphs in (True, False) if cuda else (False,):
                ways.append(partial(search_engine, make, model, dtype, sizes, graphs))
    return ways


def attempt(make: Callable[[], Engine], sample: Tensor, reference: Tensor) -> Engine | None:
    """The engine, if it can be made and its logits and gradients are those of the original but for rounding."""
    try:
        engine = make()
        with torch.no_grad():
            logits = engine(sample)
        engine.differentiate(sample, lambda z: z[:, :1])
    except Exception:  # tracing, casting and graphing a user's model may raise anything: a plainer form is tried
        return None
    drift = (logits - reference).abs().max().item()
    allowed = (FLOAT32_DRIFT if engine.dtype == torch.float32 else HALF_DRIFT) * reference.std().item()
    if not drift <= allowed:  # NaN too
        return None
    engine.margin = 4 * drift
    engine.count = Count()
    return engine


def search_engine(
    make: Callable[[nn.Module], tuple[nn.Module, str]],
    model: nn.Module,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    graphs: bool,
) -> Engine:
    net, mode = make(model)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    has_images = any(isinstance(layer, nn.Conv2d) for layer in net.modules())
    memory_format = torch.channels_last if has_images else torch.contiguous_format
    net = net.to(dtype=dtype, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    called: Net = Graphs(net) if graphs else net
    words = [str(dtype).removeprefix("torch."), mode, "channels-last" if has_images else "", "graphs" if graphs else ""]
    return Engine(
        called,
        sizes=sizes,
        dtype=dtype,
        memory_format=memory_format,
        mode=", ".join(word for word in words if word),
    )


def plain(model: nn.Module) -> tuple[nn.Module, str]:
    return copy.deepcopy(model), "as given"


def folded(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy with each BatchNorm folded into its convolution, and ReLU after max-pooling instead of before it.

    Raises whatever tracing the model raises.
    """
    graph = fuse(model)
    assert isinstance(graph, torch.fx.GraphModule)
    pool_first(graph)
    return graph, "folded"


RELUS = (torch.relu, nn.functional.relu, torch.Tensor.relu, "relu")
POOLS = (torch.max_pool2d, nn.functional.max_pool2d)


def pool_first(graph: torch.fx.GraphModule) -> None:
    """Swap every ReLU with the max-pooling after it: the same values and gradients, and a quarter of the ReLUs."""
    layers = dict(graph.named_modules())

    def is_a(node: object, kind: type[nn.Module], functions: tuple[object, ...]) -> TypeGuard[torch.fx.Node]:
        if not isinstance(node, torch.fx.Node):
            return False
        if node.op == "call_module":
            return isinstance(layers[str(node.target)], kind)
        return node.op in ("call_function", "call_method") and node.target in functions

    for pool in graph.graph.nodes:
        relu = pool.args[0] if pool.args else None
        if not is_a(pool, nn.MaxPool2d, POOLS) or not is_a(relu, nn.ReLU, RELUS) or len(relu.users) > 1:
            continue
        if pool.op == "call_module" and layers[str(pool.target)].return_indices:
            continue
        before, after = relu.args[0], relu
        swap = (pool.op, pool.target, pool.args[1:], pool.kwargs)
        pool.op, pool.target, pool.kwargs = relu.op, relu.target, relu.kwargs
        pool.args = (after, *relu.args[1:])
        relu.op, relu.target, relu.kwargs = swap[0], swap[1], swap[3]
        relu.args = (before, *swap[2])
    graph.recompile()
