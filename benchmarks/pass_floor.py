"""The floor of sums of gradients: a network's convolutions and matrix products alone, forward and back."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class PassFloor:
    """What no library can do without, which asks the network for its gradients in float32 at many points: its
    convolutions and linear layers behind the first, called on their own inputs, and the gradients by these; no other
    layer, no gradients of weights, no copies.

    The first is left out where it is an affine function of the images: on a straight line it is needed at both ends
    alone, and a sum of gradients goes back through it once.
    size: images in a pass.  whole: with the first layer, as whole passes need it.  Images lie channels-last, as is
    quickest on CPUs.
    """

    def __init__(self, model: nn.Module, x: Tensor, size: int, *, whole: bool = False):
        self.size = size
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []
        own = copy.deepcopy(model).requires_grad_(False)
        for layer in own.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(self.keep)
        with torch.no_grad():
            own(x[:size].contiguous(memory_format=torch.channels_last))
        for layer, _, _ in self.calls:
            layer._forward_hooks.clear()
        self.calls = self.calls if whole else self.calls[1:]

    def keep(self, layer: nn.Module, inputs: Any, answer: Tensor) -> None:
        self.calls.append((layer, inputs[0].clone(), torch.ones_like(answer)))

    def run(self, images: int) -> Tensor:
        """As many passes as so many images take, the last one filled up; the last gradient by images."""
        found = torch.empty(0)
        for _ in range(0, images, self.size):
            for layer, x, into in reversed(self.calls):
                given = x.detach().requires_grad_()
                (found,) = torch.autograd.grad(layer(given), given, into)
        return found
