"""Broken defences around a sound network, each a different reason why a naive evaluation overstates it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Around(nn.Module):
    """A network with something done to its images before it and to its logits after it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor] | None = None, after: Any = None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x if self.before is None else self.before(x))
        return logits if self.after is None else self.after(logits)


def saturated(net: nn.Module) -> nn.Module:
    """Logits so large that the cross-entropy's gradient underflows."""
    return Around(net, after=lambda z: 1e4 * z)


def probabilities(net: nn.Module) -> nn.Module:
    """A sharp softmax as the last layer."""
    return Around(net, after=lambda z: (20 * z).softmax(1))


def rounded(net: nn.Module) -> nn.Module:
    """Pixels rounded to 16 levels: a gradient of zero."""
    return Around(net, before=lambda x: (x * 15).round() / 15)


def numpy_inside(net: nn.Module) -> nn.Module:
    """Images that leave torch on the way, as for a codec: no gradient."""

    def codec(x: Tensor) -> Tensor:
        return torch.from_numpy(np.floor(x.detach().cpu().numpy() * 32) / 32).to(x)

    return Around(net, before=codec)


class Misleading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return -slopes[0]


def wrong_backward(net: nn.Module) -> nn.Module:
    """A backward pass that points the other way."""
    return Around(net, before=lambda x: Misleading.apply(x))  # pyright: ignore[reportArgumentType]


class ManyHeads(nn.Module):
    """A fresh high-frequency ripple on the logits at each pass: single gradients are noise."""

    def __init__(self, net: nn.Module, height: float = 1.5, frequency: float = 200.0):
        super().__init__()
        self.net, self.height, self.frequency = net, height, frequency

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        directions = torch.randn(x[0].numel(), logits.shape[1], device=x.device)
        phases = self.frequency * x.flatten(1) @ directions / x[0].numel() ** 0.5
        return logits + self.height * (phases + 6.3 * torch.rand(logits.shape[1], device=x.device)).sin()


def rippled(net: nn.Module) -> nn.Module:
    """A fixed ripple of the images too fine to matter, whose slope drowns that of the network."""
    return Around(net, before=lambda x: x + 0.004 * (4000 * x).sin())


class Labels(nn.Module):
    """One-hot answers."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.net(x).argmax(1), 10).float()


class Stays(nn.Module):
    """A BatchNorm that cannot be put into eval mode."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.norm = nn.BatchNorm1d(10)

    def train(self, mode: bool = True) -> "Stays":
        super().train(mode)
        self.norm.training = True
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.net(x))


# The cause that an audit must name, and the defence.
ZOO: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {
    "saturated": ("saturation", saturated),
    "probabilities": ("probabilities", probabilities),
    "rounded": ("non-differentiable", rounded),
    "numpy": ("missing-gradient", numpy_inside),
    "wrong-backward": ("wrong-gradient", wrong_backward),
    "random-ripple": ("randomness", ManyHeads),
    "ripple": ("shattered-gradient", rippled),
    "labels": ("labels-only", Labels),
}
