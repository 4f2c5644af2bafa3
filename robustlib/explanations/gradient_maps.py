"""Gradient maps: saliency, input times gradient, integrated gradients and SmoothGrad."""

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.inference.oracle import Oracle, as_oracle
from robustlib.input_checks import checked
from robustlib.losses import pick
from robustlib.rng import Draws, default_draws


@checked
def saliency(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The absolute gradient of the target's logit, Simonyan et al. 2014, https://arxiv.org/abs/1312.6034.

    x: images in [0, 1], shape (B, C, H, W).  target: the class whose logit is explained, shape (B,).
    Returns an attribution shaped like x, at least 0.
    """
    return gradient(as_oracle(model), x, target).abs()


@checked
def input_x_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The image times the gradient of the target's logit, Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713.

    Shapes and units as for `saliency`; signed.
    """
    return x * gradient(as_oracle(model), x, target)


@checked
def integrated_gradients(
    model: nn.Module, x: Tensor, target: Tensor, *, steps: int = 50, baseline: float = 0.0
) -> Tensor:
    """The mean gradient on the straight line from a baseline, times the way, Sundararajan et al. 2017,
    https://arxiv.org/abs/1703.01365.

    steps: nodes of the Gauss-Legendre rule.  baseline: the value of every pixel at the start; 0 is black.
    Shapes and units as for `saliency`; signed. An image's sum is the logit's rise from the baseline, but for the rule's
    error.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    start, places, shares = torch.full_like(x, baseline), ((1 + nodes) / 2).tolist(), (weights / 2).tolist()
    return (x - start) * as_oracle(model).line_gradient_sum(start, x, places, shares, pick, target)


@checked
def smoothgrad(
    model: nn.Module, x: Tensor, target: Tensor, *, sigma: float = 0.1, samples: int = 25, draws: Draws | None = None
) -> Tensor:
    """The absolute mean of gradients at noisy images, Smilkov et al. 2017, https://arxiv.org/abs/1706.03825.

    sigma: standard deviation of the noise, in units of x.  samples: noisy images of each, which are not clamped.
    Shapes and units as for `saliency`.
    """
    own = default_draws(x, draws)

    def noisy(k: int) -> Tensor:
        return x + sigma * own.normal(tuple(x.shape[1:]), f"smoothgrad/{k}").to(x)

    return (as_oracle(model).gradient_sum(x, noisy, [1.0] * samples, pick, target) / samples).abs()


def gradient(oracle: Oracle, x: Tensor, target: Tensor) -> Tensor:
    """The gradient of each image's target logit, shaped like x."""
    return oracle.value_and_grad(x, pick, target)[2]
