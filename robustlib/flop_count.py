"""Counting of floating-point operations by torch's formulas, without loading torch's compiler.

`torch.utils.flop_counter.FlopCounterMode` counts the same, but loads the compiler with its first operation, which takes
about as long as loading torch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Counter(TorchDispatchMode):
    """Counts the operations of what is called within."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is nothing to skip where nothing is compiled: to skip it, it is loaded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)
        if packet not in flop_registry and hasattr(func, "decompose"):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        found = func(*args, **kwargs)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=found)
        return found


def flops_of(call: Callable[[], object]) -> int:
    """Floating-point operations of a call without gradients; two for a multiplication with its addition.

    Those of matrix products, convolutions and attention; none of what is done value by value.
    """
    with Counter() as counter, torch.no_grad():
        call()
    return counter.flops
