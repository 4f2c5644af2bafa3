"""Proofs that no image within a radius is misclassified, one image at a time, so that no batch decides."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from robustlib.bounds.layers import Interval
from robustlib.bounds.lines import Lines, channels_last
from robustlib.bounds.network import Network

MEMORY = 2**24  # numbers of all lines that go back at once, at the widest layer
MOST_LINES = 128  # what goes back at once fits the caches of a CPU core


class Proof(NamedTuple):
    """holds: no image within the radius is misclassified. False says nothing.  products: multiplications it took."""

    holds: bool
    products: int


@dataclass(frozen=True)
class Prover:
    """Proves by CROWN, Zhang et al. 2018, https://arxiv.org/abs/1811.00866, in Linf.

    network: whose logits are the last node.  refined: whether what goes into a ReLU, where its sign is open by
    intervals, is bounded by lines too. It takes long and proves many more.
    Bounds are computed in float32 and widened by `lines.ROUNDING`: far more than rounding was measured to do, and no
    proof in exact arithmetic.
    """

    network: Network
    refined: bool = True

    @torch.no_grad()
    def proof(self, x: Tensor, y: int, eps: float) -> Proof:
        """Of one image, shape (1, C, H, W), that no image of the box within eps of it has another class than y."""
        wide = eps * (1 + 1e-5) + torch.finfo(torch.float32).eps  # as `norms.inside` allows
        images = Interval(*(channels_last((x + by).clamp(0, 1)) for by in (-wide, wide)))
        network, known = self.network, dict[int, Interval]()
        intervals = network.intervals(images)
        products = [self.products_of_margins]
        holds = self.margins(y, intervals) > 0
        for place in network.before_relus if self.refined else ():
            if holds:
                break
            known[place], lines = self.tightened(place, intervals)
            if lines == 0:
                continue
            products += [lines * network.products_back(place), self.products_of_margins]
            intervals = network.intervals(images, known)
            holds = self.margins(y, intervals) > 0
        return Proof(holds, sum(products))

    @property
    def products_of_margins(self) -> int:
        """One row for each other class, and the intervals' two passes."""
        return (self.network.nodes[-1].shape[0] + 1) * self.network.products_back(len(self.network.nodes) - 1)

    @property
    def most_products(self) -> int:
        """Multiplications of a proof in which no sign is known."""
        network = self.network
        places = network.before_relus if self.refined else []
        lines = [(self.numbers(place), network.products_back(place)) for place in places]
        return sum(n * each for n, each in lines) + (len(places) + 1) * self.products_of_margins

    def at_once(self, place: int) -> int:
        """How many lines go back from a node at once."""
        widest = max(self.numbers(at) for at in range(place + 1))
        return max(1, min(MOST_LINES, MEMORY // widest))

    def numbers(self, place: int) -> int:
        return prod(self.network.nodes[place].shape)

    def margins(self, y: int, intervals: list[Interval]) -> float:
        """The least difference of the logit of y and the largest other one."""
        classes = self.network.nodes[-1].shape[0]
        others = [c for c in range(classes) if c != y]
        weights = torch.zeros(classes - 1, classes)
        weights[:, y], weights[torch.arange(classes - 1), others] = 1, -1
        last, least = len(self.network.nodes) - 1, torch.full((1,), torch.inf)  # which one class alone has
        for some in weights.split(self.at_once(last)):
            lower, _ = self.network.lines_back(Lines.begin(some, one_sided=True), last, intervals)
            least = torch.cat([least, lower])
        return least.min().item()  # NaN is not above 0

    def tightened(self, place: int, intervals: list[Interval]) -> tuple[Interval, int]:
        """A node's interval with what lines say of the values whose sign is open, and how many lines that were."""
        lower, upper = (each.flatten().clone() for each in intervals[place])
        unsure = ((lower < 0) & (upper > 0)).nonzero().squeeze(1)
        shape = self.network.nodes[place].shape
        for some in unsure.split(self.at_once(place)):
            weights = torch.zeros(len(some), len(lower))
            weights[torch.arange(len(some)), some] = 1
            lines = Lines.begin(channels_last(weights.reshape(-1, *shape)))
            least, greatest = self.network.lines_back(lines, place, intervals)
            lower[some], upper[some] = lower[some].maximum(least), upper[some].minimum(greatest)
        return Interval(*(channels_last(each.reshape(1, *shape)) for each in (lower, upper))), len(unsure)
