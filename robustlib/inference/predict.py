"""The class that a model predicts, asked of its copy where the copy is surely right."""

import torch
from torch import Tensor, nn

from robustlib.inference.oracle import as_oracle
from robustlib.model_calls import ask
from robustlib.number_text import counted


def classes_of(logits: Tensor) -> Tensor:
    """The class that each row of logits names, shape (B,). Raises ValueError for NaN: what a model says so is unknown,
    and must count neither as right nor as broken.
    """
    if (unknown := logits.isnan().any(1)).any():
        raise ValueError(f"the model gives NaN logits for {int(unknown.sum())} of {counted(len(logits), 'image')}")
    return logits.argmax(1)


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The model's class for each image, shape (B,). Raises ValueError where it gives NaN."""
    return classes_of(ask(model, x))


def correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which images the model classifies correctly, shape (B,)."""
    return predict(model, x) == y


@torch.no_grad()
def verdict(
    model: nn.Module,
    search: nn.Module,
    x: Tensor,
    y: Tensor,
    logits: Tensor | None = None,
    *,
    doubted: Tensor | None = None,
) -> Tensor:
    """The model's class for each image, or the true one where it need not be asked: where its copy is surely right.

    logits: see `Oracle.surely_right`.  doubted: images that the copy is known to misclassify, which it is not asked
    about again, shape (B,).
    """
    if search is model:
        return predict(model, x)
    prediction, copy = y.clone(), as_oracle(search)
    if doubted is None:
        doubtful = (~copy.surely_right(x, y, logits)).nonzero().squeeze(1)
    else:
        asked = (~doubted).nonzero().squeeze(1)
        right = copy.surely_right(x[asked], y[asked])
        doubtful = torch.cat([doubted.nonzero().squeeze(1), asked[~right]])
    if len(doubtful):
        prediction[doubtful] = predict(model, x[doubtful])
    return prediction
