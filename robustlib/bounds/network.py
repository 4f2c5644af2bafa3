"""A network as a list of layers whose bounds are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robustlib.bounds.layers import Interval, Layer, Relu, Reshape, ScaleShift, Shape
from robustlib.bounds.lines import Lines, flat_rows


@dataclass(frozen=True)
class Node:
    """layer: None for the images.  inputs: places of its inputs.  shape: of the output, without the batch."""

    layer: Layer | None
    inputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Network:
    """nodes: each after its inputs; the images are the first, the logits the last."""

    nodes: tuple[Node, ...]

    @cached_property
    def start(self) -> int:
        """Where lines end: at the images, or what is made of them pixel by pixel, whose intervals are all there is."""
        at = 0
        while at + 1 < len(self.nodes) and isinstance(self.nodes[at + 1].layer, ScaleShift | Reshape):
            if sum(at in node.inputs for node in self.nodes) > 1:
                break
            at += 1
        return at

    @property
    def before_relus(self) -> list[int]:
        """Places of what goes into a ReLU, in order."""
        return list(dict.fromkeys(node.inputs[0] for node in self.nodes if isinstance(node.layer, Relu)))

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of images, shape (B, C, H, W)."""
        found = [x]
        for node in self.nodes[1:]:
            assert node.layer is not None
            found.append(node.layer.value(*(found[i] for i in node.inputs)))
        return found[-1]

    def intervals(self, images: Interval, known: dict[int, Interval] | None = None) -> list[Interval]:
        """What each node's output lies between, by intervals alone. known: of some, tighter."""
        found = [images]
        for place, node in enumerate(self.nodes[1:], 1):
            assert node.layer is not None
            interval = node.layer.forward(*(found[i] for i in node.inputs))
            found.append(interval.within(known[place]) if known and place in known else interval)
        return found

    def lines_back(self, lines: Lines, place: int, intervals: Sequence[Interval]) -> tuple[Tensor, Tensor]:
        """The least and greatest values of linear functions of a node's output, over all images in the interval.

        intervals: of each node before it.
        """
        going, start = {place: lines.weights}, min(self.start, place)
        for at in range(place, start, -1):
            if at not in going:
                continue
            node, lines.weights = self.nodes[at], going.pop(at)
            assert node.layer is not None
            for source, weights in zip(
                node.inputs, node.layer.back(lines, *(intervals[i] for i in node.inputs)), strict=True
            ):
                going[source] = going[source] + weights if source in going else weights
        lower, upper = (flat_rows(each)[0] for each in intervals[start])
        weights = flat_rows(going[start])
        middle, size = weights @ ((lower + upper) / 2), weights.abs()
        wide = size @ ((upper - lower) / 2)
        lines.size += size @ torch.maximum(lower.abs(), upper.abs())
        lines.lower += middle - wide
        lines.upper += middle + wide
        return lines.bounds()

    def products_back(self, place: int) -> int:
        """Multiplications of one row on its way from a node's output to the images."""
        needed, products = {place}, 0
        for at in range(place, self.start, -1):
            if at in needed:
                node = self.nodes[at]
                needed |= set(node.inputs)
                products += 0 if node.layer is None else node.layer.products
        return products
