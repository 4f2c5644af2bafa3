"""Gradients of a loss by the images."""

from torch import Tensor, nn

from robustlib.inference.batched_model import differentiate
from robustlib.losses import Loss


def climb(model: nn.Module, x: Tensor, loss: Loss, *rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), each example's own loss (B,) and its gradient by x, for `loss(logits, *rows)`."""
    logits, values, gradients = differentiate(model, x, lambda z, *chosen: loss(z, *chosen)[:, None], *rows)
    return logits, values[:, 0], gradients[:, 0]


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient of each example's own loss with respect to x, shaped like x."""
    return climb(model, x, loss, y)[2]
