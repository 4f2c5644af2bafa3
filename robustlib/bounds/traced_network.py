"""A model read as a network whose bounds are known. What they do not know is refused by name."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robustlib.bounds.known_layers import ARITHMETIC, FUNCTIONS, MODULES, UnknownLayer, torchvision_normalisation
from robustlib.bounds.layers import Add, Layer, ScaleShift, Shape
from robustlib.bounds.network import Network, Node
from robustlib.inference.graph_rewriting import normalises, traced
from robustlib.inference.model_modes import copied
from robustlib.inference.wrappers import hooked
from robustlib.model_calls import Careful

# How far a network's own answer may lie from its model's, of what logits lie from their median in the median: one logit
# far from all others, as of a class that is masked, says nothing of how near these come to each other.
AGREES = 1e-4
ROUNDED = 1e-6  # of a logit besides: its rounding in float32, which bounds are widened by many times


@torch.no_grad()
def network_of(model: nn.Module, sample: Tensor) -> Network:
    """The layers of a model in eval mode on a CPU, with its weights as they are.

    sample: some images, shape (B, C, H, W), on which the layers' answer is compared with the model's.
    Raises UnknownLayer for a layer of which no bounds are known, a model with hooks, what is no network but asks
    somebody else's, and one that answers otherwise than its layers do; whatever tracing the model raises.
    """
    if any(hooked(layer) for layer in model.modules()):
        raise UnknownLayer("a layer has hooks")
    if "forward" in vars(model):  # a trace follows its class's
        raise UnknownLayer("the model has a forward of its own")
    if any(isinstance(layer, Careful) for layer in model.modules()):  # nor is it asked: its answers may be counted
        raise UnknownLayer("a layer asks a model")
    graph = traced(copied(model))  # tracing runs the model, which may keep what it is called with
    Shapes(graph).run(sample[:2].clone())
    network = Reader(graph).network()
    logits = model(sample.clone())  # into which it may write
    away = AGREES * middle((logits - middle(logits)).abs())
    if not torch.allclose(network(sample), logits, rtol=ROUNDED, atol=away.item()):
        raise UnknownLayer("the model answers otherwise than its layers")
    return network


def middle(values: Tensor) -> Tensor:
    return values.flatten().quantile(0.5)


class Shapes(fx.Interpreter):
    """Runs a traced graph on some images, and keeps the shape of what each of its nodes gives.

    Raises UnknownLayer where one writes into what is read after it, which the graph does not tell.
    """

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.extra_traceback = False  # lines about tlparse, after the words of what it raises

    def run_node(self, n: fx.Node) -> Any:
        later = set(self.env) - set(self.user_to_last_uses.get(n, ()))
        before = {node: self.env[node]._version for node in later if node.users and isinstance(self.env[node], Tensor)}
        found = super().run_node(n)
        if any(self.env[node]._version != version for node, version in before.items()):
            raise UnknownLayer(f"{n} writes into what is read later")
        if isinstance(found, Tensor):
            n.meta["shape"] = tuple(found.shape)
        return found


class Reader:
    """Reads the nodes of a traced graph as layers."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.nodes: list[Node] = []
        self.place: dict[fx.Node, int] = {}
        self.refused: dict[fx.Node, UnknownLayer] = {}

    def network(self) -> Network:
        for node in self.graph.graph.nodes:
            match node.op:
                case "placeholder":
                    if self.nodes:
                        raise UnknownLayer("the model takes more than images")
                    self.put(node, None, ())
                case "output":
                    (last,) = node.args
                    if self.input(last) != len(self.nodes) - 1:
                        raise UnknownLayer("the model's answer is not its last layer's")
                case "get_attr":
                    pass
                case _:
                    self.read(node)
        return Network(tuple(self.nodes))

    def read(self, node: fx.Node) -> None:
        """What is no layer may give a number that others need, such as a size, but no values."""
        try:
            if node.op == "call_module":
                module = self.graph.get_submodule(str(node.target))
                if "forward" in vars(module):
                    raise UnknownLayer(f"{node.target} with a forward of its own")
                make = next((make for kind, make in MODULES if type(module) is kind), None)
                if normalises(module):
                    make = torchvision_normalisation
                if make is None:
                    raise UnknownLayer(f"{type(module).__name__} {node.target}")
                layer, sources = make(module, self.shape(node.args[0]), self.shape(node)), [node.args[0]]
            else:
                layer, sources = self.function(node)
            if layer is None:
                self.place[node] = self.input(sources[0])
            else:
                self.put(node, layer, tuple(self.input(source) for source in sources))
        except UnknownLayer as error:
            if "shape" in node.meta and not node.users:  # it may write into what others read, as `h.data.clamp_(0, 6)`
                raise
            self.refused[node] = error

    def function(self, node: fx.Node) -> tuple[Layer | None, list[Any]]:
        name = name_of(node)
        first = node.args[0] if node.args else None
        if name in ARITHMETIC:
            return self.arithmetic(node, ARITHMETIC[name])
        if name not in FUNCTIONS or not isinstance(first, fx.Node):
            raise UnknownLayer(str(name))
        return FUNCTIONS[name](node, self.shape(first), self.shape(node)), [first]

    def arithmetic(self, node: fx.Node, kind: str) -> tuple[Layer, list[Any]]:
        """Two results added, or one with a constant."""
        if node.kwargs or len(node.args) != 2:
            raise UnknownLayer(f"{kind} with other arguments")
        one, other = node.args
        constants = [self.constant(each) for each in (one, other)]
        if constants[0] is None and constants[1] is None:
            if kind != "add" or self.shape(one) != self.shape(other):
                raise UnknownLayer(f"{kind} of two layers")
            return Add(), [one, other]
        if constants[1] is None:
            if kind not in ("add", "mul"):
                raise UnknownLayer(f"{kind} from a constant")
            one, constants = other, [None, constants[0]]
        value = constants[1]
        assert value is not None
        if self.shape(node) != self.shape(one):
            raise UnknownLayer(f"{kind} with a larger constant")
        unit, nothing = torch.ones_like(value), torch.zeros_like(value)
        scale, shift = {
            "add": (unit, value), "sub": (unit, -value), "mul": (value, nothing), "div": (1 / value, nothing)
        }[kind]  # fmt: skip
        return ScaleShift(scale, shift), [one]

    def constant(self, value: Any) -> Tensor | None:
        """A number or a tensor of the model's; None for what depends on the images."""
        if isinstance(value, int | float):
            return torch.tensor(float(value))
        if isinstance(value, fx.Node) and value.op == "get_attr":
            found = operator.attrgetter(str(value.target))(self.graph)
            if isinstance(found, Tensor) and found.is_floating_point():
                return found.detach().float()
        if isinstance(value, fx.Node) and value in self.place:
            return None
        raise self.refused[value] if value in self.refused else UnknownLayer(f"what {value} is")

    def put(self, node: fx.Node, layer: Layer | None, inputs: tuple[int, ...]) -> None:
        self.place[node] = len(self.nodes)
        self.nodes.append(Node(layer, inputs, self.shape(node)))

    def input(self, node: Any) -> int:
        if node in self.refused:
            raise self.refused[node]
        if node not in self.place:
            raise UnknownLayer(f"what {node} is")
        return self.place[node]

    def shape(self, node: Any) -> Shape:
        shape = node.meta.get("shape") if isinstance(node, fx.Node) else None
        if shape is None:
            raise UnknownLayer(f"what {node} is")
        return tuple(shape[1:])


def name_of(node: fx.Node) -> str:
    """Of a method, or of a function of PyTorch's. Raises UnknownLayer for another function, whatever its name."""
    if isinstance(node.target, str):
        return node.target
    name = getattr(node.target, "__name__", str(node.target))
    if not any(getattr(home, name, None) is node.target for home in (torch, F, operator)):
        raise UnknownLayer(f"a function {name} that is not PyTorch's")
    return name
