"""Occlusion: how much the logit falls where a window of the image is hidden."""

import torch
from torch import Tensor, nn

from robustlib.inference.batch_sizes import groups
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.losses import pick


@checked
def occlusion(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    window: int = 4,
    stride: int | None = None,
    baseline: float = 0.0,
) -> Tensor:
    """The fall of the target's logit behind a window that slides over the image, Zeiler and Fergus 2014,
    https://arxiv.org/abs/1311.2901.

    x: images in [0, 1], shape (B, C, H, W).  target: the class whose logit is explained, shape (B,).
    window, stride: side and step of the window in pixels; the stride is the window where none is given. At the far
    edges the window is cut off.  baseline: the value of what is hidden.
    Returns an attribution of shape (B, 1, H, W), signed: each pixel's mean over the windows that hide it.
    Raises ValueError for a stride wider than the window, which would leave pixels out.
    """
    step = window if stride is None else stride
    if step > window:
        raise ValueError(f"occlusion: expected a stride of at most the window, {window}, got {step}")
    oracle = as_oracle(model)
    places = [
        (slice(top, top + window), slice(left, left + window))
        for top in starts(x.shape[2], window, step)
        for left in starts(x.shape[3], window, step)
    ]
    whole = pick(oracle.logits(x), target)
    total = torch.zeros_like(x[:, :1])
    hidden = torch.zeros_like(x[0, 0])
    for chosen in groups(len(places), oracle.at_once(x)):
        images = x.repeat(len(chosen), 1, 1, 1)
        for k, part in zip(chosen, images.split(len(x)), strict=True):
            part[:, :, *places[k]] = baseline
        values = pick(oracle.logits(images), target.repeat(len(chosen)))
        for k, value in zip(chosen, values.split(len(x)), strict=True):
            total[:, :, *places[k]] += (whole - value)[:, None, None, None]
            hidden[places[k]] += 1
    return total / hidden


def starts(side: int, window: int, step: int) -> range:
    """Where windows begin so that together they hide every pixel."""
    return range(0, max(side - window, 0) + step, step)
