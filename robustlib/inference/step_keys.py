"""Keys of steps: whether two runs take the same step, told from the functions' code and what they close over.

A recorded step holds every Python value that its functions read, as it was. So it may be played for another run only if
code and values are the same. What a function reads of its module counts as fixed.
"""

import types
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

CONSTANT = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, type, types.BuiltinFunctionType)


class NotPlain(Exception):
    """A value that no key can be made of: a tensor, or an object that may change."""


def key_of(value: Any) -> Hashable:
    """Equal for values that a step reads alike. Raises NotPlain for one of which that cannot be told."""
    match value:
        case tuple() | list():
            return (type(value), *(key_of(each) for each in value))
        case dict():
            return (dict, *((key_of(name), key_of(each)) for name, each in value.items()))
        case partial():
            return (partial, key_of(value.func), key_of(value.args), key_of(value.keywords))
        case types.FunctionType():
            return function_key(value)
        case _ if isinstance(value, CONSTANT):
            return (type(value), value if value == value else repr(value))  # NaN is not itself
    raise NotPlain(f"{type(value).__name__}")


def function_key(function: types.FunctionType) -> Hashable:
    """Its code, its defaults and what it closes over; of a function that closes over itself, its code alone."""
    if not function.__closure__:
        return (function.__module__, function.__code__, key_of(function.__defaults__), key_of(function.__kwdefaults__))
    try:
        cells = [cell.cell_contents for cell in function.__closure__]
    except ValueError as error:  # a name that has no value yet
        raise NotPlain("a name without a value") from error
    if any(cell is function for cell in cells):
        raise NotPlain("a function that closes over itself")
    own = (function.__module__, function.__code__, key_of(function.__defaults__), key_of(function.__kwdefaults__))
    return (*own, *(key_of(cell) for cell in cells))
