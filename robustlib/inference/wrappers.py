"""Wrappers that compute nothing themselves: what `torch.compile`, DataParallel and their like put around a module."""

import copy

import torch
from torch import nn

from robustlib.inference.model_modes import in_a_line, without_graphs
from robustlib.memory import out_of_memory

COMPILED = "_orig_mod"
# By the place of their class, since loading torch's compiler takes about as long as loading torch: each with the name
# that the module inside has.
WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": COMPILED,
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(layer: nn.Module) -> bool:
    return any(getattr(layer, name) for name in HOOKS)


def altered(layer: nn.Module) -> bool:
    """Whether a module does something else than its class says, by hooks or by a forward of its own. A trace leaves out
    some of these, and what changes no sample no comparison tells.
    """
    return hooked(layer) or "forward" in vars(layer)


def inside(layer: nn.Module) -> nn.Module | None:
    """The module whose answers in evaluation mode a wrapper hands on; None for any other module, and for a wrapper
    with hooks, which may change them.
    """
    name = WRAPPERS.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    if name is None or not hooked(layer):
        return None if name is None else getattr(layer, name)
    if name == COMPILED:
        raise ValueError("a copy loses the hooks on what torch.compile made: expected them on the module inside")
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """A copy of the model with the modules inside in the places of their wrappers, and nothing compiled.

    Raises ValueError for a model that cannot be copied.
    """
    memo = without_graphs(model)
    found = [(layer, inner) for layer in model.modules() if (inner := inside(layer)) is not None]
    try:
        with torch.no_grad():  # as in `copied`
            for layer, inner in reversed(found):  # from the inside out
                memo[id(layer)] = copy.deepcopy(inner, memo)  # the wrapper itself may be one that cannot be copied
            return copy.deepcopy(model, memo)
    except Exception as error:  # a user's model may hold on to anything
        if out_of_memory(error):
            raise
        raise ValueError(f"the model cannot be copied: {type(error).__name__}: {in_a_line(error)}") from error
