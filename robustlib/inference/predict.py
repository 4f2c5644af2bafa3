"""The class that a model predicts, asked of its copy where the copy is surely right."""

import torch
from torch import Tensor, nn

from robustlib.inference.batched_model import Engine
from robustlib.inference.confirm import classes_of, surely_right
from robustlib.model_calls import ask


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The model's class for each image, shape (B,). Raises ValueError where it gives NaN."""
    return classes_of(ask(model, x))


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return predict(model, x) == y


@torch.no_grad()
def verdict(model: nn.Module, search: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The model's class for each image, or the true one where it need not be asked: where its copy is surely right.

    A copy in float16 is not asked: beyond its range it may give finite logits of something else.
    """
    if search is model or not isinstance(search, Engine):
        return predict(model, x)
    if search.precision == torch.float16 and search.finer:
        (search,) = search.finer
    prediction = y.clone()
    doubtful = (~surely_right(search, x, y)).nonzero().squeeze(1)
    if len(doubtful):
        prediction[doubtful] = predict(model, x[doubtful])
    return prediction


@torch.no_grad()
def astray(search: nn.Module, x: Tensor) -> Tensor:
    """Attacked images for which a copy in float16 computes something else than its copy in float32, shape (B,).

    Beyond its range a norm is infinite, and what is divided by it zero: a gradient and logits that are finite, and not
    the model's. The attack on them was one on another function.
    """
    if not isinstance(search, Engine) or search.precision != torch.float16 or not search.finer:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return ~((search(x) - search.finer[0](x)).abs().amax(1) <= search.drift + search.finer[0].drift)
