"""Grad-CAM: the maps of a convolutional layer, weighted by their mean gradients."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.batch_sizes import groups
from robustlib.inference.compiler_stance import uncompiled
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.losses import pick


@checked
def grad_cam(model: nn.Module, x: Tensor, target: Tensor, *, layer: str | None = None) -> Tensor:
    """Gradient-weighted class activation maps, Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391.

    x: images in [0, 1], shape (B, C, H, W).  target: the class whose logit is explained, shape (B,).
    layer: whose answer is taken, by its name in the model; where none is given, the last one after a convolution, in
    the order of execution, that gives maps of at least 2x2.
    Returns an attribution of shape (B, 1, H, W), at least 0, enlarged bilinearly from the layer's maps.
    Raises ValueError for a model without such a layer.
    """
    oracle = as_oracle(model)
    name, chosen = find_layer(oracle, x[:1], layer)
    maps: list[Tensor] = []
    size = oracle.batch or len(x)
    for rows in groups(len(x), size):
        # Filled up here, so that the layer's rows are known to be those of the images.
        places = torch.arange(rows.start, rows.start + size, device=x.device).clamp(max=rows.stop - 1)
        with uncompiled(), watching(chosen) as seen:
            oracle.value_and_grad(x[places], pick, target[places])
        if "gradient" not in seen:
            raise ValueError(f"grad_cam: the target's logit does not depend on what layer {name!r} gives")
        weights = seen["gradient"].mean((2, 3), keepdim=True)
        found = (weights * seen["answer"]).sum(1, keepdim=True).relu()
        maps.append(F.interpolate(found, size=x.shape[-2:], mode="bilinear")[: len(rows)])
    return torch.cat(maps).to(x.dtype)


def find_layer(oracle: nn.Module, x: Tensor, layer: str | None) -> tuple[str, nn.Module]:
    """The named layer, or the last one that gives maps of at least 2x2 after a convolution."""
    named = {name: module for name, module in oracle.named_modules() if name}
    if layer is not None:
        fits = [name for name in named if name == layer or name.endswith(f".{layer}")]
        if not fits:
            known = ", ".join(own_name(name) for name, module in named.items() if isinstance(module, nn.Conv2d))
            raise ValueError(f"grad_cam: unknown layer {layer!r}, expected the name of one such as: {known or 'none'}")
        return layer, named[min(fits, key=len)]
    last: list[str] = []
    convolved = False

    def look(name: str, module: nn.Module, answer: Any) -> None:
        nonlocal convolved
        convolved |= isinstance(module, nn.Conv2d)
        if convolved and isinstance(answer, Tensor) and answer.ndim == 4 and min(answer.shape[-2:]) >= 2:
            last[:] = [name]

    with uncompiled(), ExitStack() as hooks:
        for name, module in named.items():
            hooks.callback(
                module.register_forward_hook(lambda module, _, answer, name=name: look(name, module, answer)).remove
            )
        with torch.no_grad():
            oracle(x)
    if not last:
        raise ValueError("grad_cam: expected a model with a convolution that gives maps of at least 2x2, found none")
    return own_name(last[0]), named[last[0]]


def own_name(name: str) -> str:
    """A layer's name in the model, without that of what the model is wrapped in."""
    return name.partition(".")[2] if name.startswith(("model.", "net.")) else name


@contextmanager
def watching(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the layer gives in the next pass, the last time that it is called, and the gradient there."""
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, inputs: Any, answer: Tensor) -> None:
        seen["answer"] = answer.detach().float().clone()  # a ReLU that follows may write into it

        def keep(gradient: Tensor) -> None:
            seen["gradient"] = gradient.detach().float()

        if answer.requires_grad:
            answer.register_hook(keep)

    handle = layer.register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()
