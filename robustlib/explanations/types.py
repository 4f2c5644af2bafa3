"""Explanation records: an explanation's function, and what a person says of it."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from robustlib.attacks.types import Params, Stage
from robustlib.inference.throughput import Work


@dataclass(frozen=True)
class Explanation(Stage):
    """What is known of an explanation that studies name: a function (model, x, target, *, ...) -> attribution.

    cost: passes of an example, by the parameters.
    surrogate: the gradient map that an attack on it descends, where it has no gradient, or none that is cheap.
    looks_inside: whether it asks the model's own layers, which a copy may not have.
    """

    cost: Callable[[Params], Work]
    _: KW_ONLY
    surrogate: Literal["gradient", "input-x-gradient"]
    looks_inside: bool = False

    @property
    def uses_gradient(self) -> bool:
        """Whether it asks the model for gradients."""
        return self.cost(self.defaults).gradients > 0
