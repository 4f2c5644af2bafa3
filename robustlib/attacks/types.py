"""The type of an attack."""

from collections.abc import Callable

from torch import Tensor

Attack = Callable[..., Tensor]
