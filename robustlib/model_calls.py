"""Every call of a model that somebody else wrote: with memory of its own, and an answer that is taken from it at once.

A model may write into its images (`x.sub_(mean)`, a first layer with `inplace=True`), keep them, give a view of them,
or write over what it gave before, as a runtime's output buffer and a CUDA graph do. So what it is handed nobody else
reads, and what it gives is copied. Both copies are always made: what a model wrote through NumPy no tensor tells.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


class Careful:
    """What hands on copies itself, and gives what nobody else holds: ours, around or in place of somebody's model."""


def ask(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The model's logits, floats of shape (B, classes), for images that the caller goes on with, shape (B, C, H, W).

    Raises ValueError for any other answer.
    """
    if isinstance(model, Careful):
        return model(x)  # pyright: ignore[reportCallIssue]
    return rows_of(model(x.clone()), len(x)).clone()


def hand(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The images as they are handed to the model; gradients reach the given ones.

    A copy, of the same layout: a leaf that requires a gradient, or a view of one, no model could write into.
    """
    return x if isinstance(model, Careful) else x.clone()


def rows_of(answer: Any, n: int) -> Tensor:
    """The answer for n images as floats, shape (n, classes). Raises ValueError unless it is a row of numbers each."""
    if isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == n and not answer.is_complex():
        return answer if answer.is_floating_point() else answer.float()
    raise ValueError(f"expected logits of shape ({n}, classes) from the model, got {described(answer)}")


def described(answer: Any) -> str:
    """What came instead of logits, and how to mend it where that is plain."""
    if isinstance(answer, Tensor):
        shape = tuple(answer.shape)
        if answer.is_complex():
            return f"{shape} of {answer.dtype}: let forward return real numbers"
        if answer.ndim > 2 and answer[0:1, :].numel() == shape[1]:
            return f"{shape}: let forward return them flattened, `.flatten(1)`"
        if answer.ndim == 1 and not answer.is_floating_point():
            return f"{shape}: of labels robustlib.models.black_box.BlackBoxModel(model, num_classes) makes a model"
        return f"{shape}"
    name = type(answer).__name__
    if answer is None:
        return f"{name}: forward must return them"
    if hasattr(answer, "logits") or (isinstance(answer, Mapping) and "logits" in answer):
        return f"{name}: let forward return its `logits` alone"
    if isinstance(answer, Mapping):
        return f"{name} of {', '.join(map(str, answer)) or 'nothing'}: let forward return the logits alone"
    return f"{name}: let forward return the logits alone" if isinstance(answer, tuple | list) else name
