"""What an attack climbs: one number an example, from logits and true classes. And the gradient of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of raw logits, shape (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus the true one, shape (B,): positive where misclassified.

    Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644. Does not saturate where the model is confident.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return wrong - true


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}


def find_loss(name: str) -> Loss:
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}, expected one of: {', '.join(LOSSES)}")
    return LOSSES[name]


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradient of each example's own loss with respect to x, shaped like x."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(loss(model(x), y).sum(), x)
    return grad
