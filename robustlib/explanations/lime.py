"""LIME: a linear model of the logit around an image, on the parts of a fixed grid."""

import torch
from torch import Tensor, nn

from robustlib.explanations.variants import answers, spread, squares
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.rng import Draws, default_draws


@checked
def lime(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    grid: int = 8,
    samples: int = 1000,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    baseline: float = 0.0,
    draws: Draws | None = None,
) -> Tensor:
    """Local interpretable model-agnostic explanations, Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938.

    x: images in [0, 1], shape (B, C, H, W).  target: the class whose logit is explained, shape (B,).
    grid: the image is cut into grid x grid parts.  samples: variants of each image, the first of them whole; in the
    others a part is hidden with a chance of a half.  kernel_width: of a variant's weight, exp(-d^2 / kernel_width^2)
    to the power of a half, d its cosine distance from the whole image.  ridge: the penalty on squared coefficients.
    baseline: the value of what is hidden.
    Returns an attribution of shape (B, 1, H, W), signed: each part's coefficient at its pixels.
    """
    oracle, parts = as_oracle(model), squares(x, grid)
    kept = default_draws(x, draws).uniform((samples, grid * grid), "lime") < 0.5
    kept[:, 0] = True
    kept = kept.transpose(0, 1)
    values = answers(oracle, x, target, kept, parts, baseline)
    # One image at a time: sums over several at once may differ in their last bits.
    found = [
        weighted_ridge(kept[:, i].double(), values[:, i], closeness(kept[:, i], kernel_width), ridge)
        for i in range(len(x))
    ]
    return spread(torch.stack(found), parts)


def closeness(kept: Tensor, kernel_width: float) -> Tensor:
    """The weight of each variant, float64, shape (V,)."""
    distance = 1 - kept.double().mean(1).sqrt()  # the cosine of a vector of zeros and ones to the one of ones
    return (-(distance**2) / kernel_width**2).exp().sqrt()


def weighted_ridge(z: Tensor, values: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Coefficients, shape (M,), of the linear model with an intercept for values (V,) at points z (V, M)."""
    share = weights / weights.sum()
    z, values = z - share @ z, values - share @ values
    normal = (z * weights[:, None]).T @ z + ridge * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return torch.linalg.solve(normal, (z * weights[:, None]).T @ values)
