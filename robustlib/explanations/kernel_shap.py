"""KernelSHAP: Shapley values of the parts of a fixed grid, by weighted least squares."""

import torch
from torch import Tensor, nn

from robustlib.explanations.variants import answers, spread, squares
from robustlib.inference.oracle import as_oracle
from robustlib.input_checks import checked
from robustlib.number_text import counted
from robustlib.rng import Draws, default_draws

PIVOT = 1e-5  # of the largest: below it rounding alone has left one, and the values are not determined


@checked
def kernel_shap(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    grid: int = 8,
    samples: int = 500,
    baseline: float = 0.0,
    draws: Draws | None = None,
) -> Tensor:
    """KernelSHAP, Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874.

    Coalitions are drawn by their Shapley weight, each with its complement, which halves the variance (Covert and Lee
    2021, https://arxiv.org/abs/2012.01536); the values sum to the logit's rise from the baseline exactly.
    x: images in [0, 1], shape (B, C, H, W).  target: the class whose logit is explained, shape (B,).
    grid: the image is cut into grid x grid parts.  samples: coalitions of each image, beside none and all.
    baseline: the value of what is hidden.
    Returns an attribution of shape (B, 1, H, W), signed: each part's value at its pixels.
    Raises ValueError for fewer samples than determine the values: those of a pair tell the same, and some come twice.
    """
    count = grid * grid
    if samples < 2 * count:
        raise ValueError(
            f"kernel_shap: expected samples of at least {2 * count}, twice the parts of a grid of {grid}, got {samples}"
        )
    oracle, parts = as_oracle(model), squares(x, grid)
    kept = coalitions(default_draws(x, draws), count, samples)
    ends = torch.zeros(2, len(x), count, dtype=torch.bool, device=x.device)
    ends[1] = True
    none, whole = answers(oracle, x, target, ends, parts, baseline)
    values = answers(oracle, x, target, kept, parts, baseline) - none
    # One image at a time: sums over several at once may differ in their last bits.
    found = [shapley(kept[:, i].double(), values[:, i], (whole - none)[i]) for i in range(len(x))]
    return spread(torch.stack(found), parts)


def coalitions(draws: Draws, count: int, samples: int) -> Tensor:
    """Coalitions of each example, bool, shape (samples, B, count), each followed by its complement.

    A size s is as probable as 1 / (s (count - s)), the weight of all coalitions of that size together.
    """
    half = -(-samples // 2)
    sizes = torch.arange(1, count, dtype=torch.float64)
    chance = (1 / (sizes * (count - sizes))).cumsum(0)
    bounds = (chance / chance[-1]).float().to(draws.index.device)
    drawn = draws.uniform((half,), "kernel_shap/size")
    size = 1 + torch.searchsorted(bounds[:-1].contiguous(), drawn, right=True)
    order = draws.uniform((half, count), "kernel_shap/members").argsort(dim=2, stable=True)
    first = torch.arange(count, device=order.device) < size[:, :, None]
    kept = torch.zeros_like(first).scatter_(2, order, first)
    return torch.stack([kept, ~kept], 2).flatten(1, 2)[:, :samples].transpose(0, 1)


def shapley(z: Tensor, values: Tensor, total: Tensor) -> Tensor:
    """The least squares solution phi, (M,), of z phi = values, (V, M) and (V,), among those that sum to `total`."""
    # The last one follows from the others: one unknown less, and no constraint.
    rest = z[:, :-1] - z[:, -1:]
    normal = rest.T @ rest  # of whole numbers: exact, in whatever order they are summed
    lower, failed = torch.linalg.cholesky_ex(normal)
    if failed or lower.diagonal().min() < PIVOT * normal.diagonal().max().sqrt():
        raise ValueError(
            f"kernel_shap: {counted(len(z), 'sample does', 'samples do')} not determine the values of an image's "
            f"{counted(z.shape[1], 'part')}: take more"
        )
    found = torch.cholesky_solve((rest.T @ (values - total * z[:, -1]))[:, None], lower)[:, 0]
    return torch.cat([found, (total - found.sum())[None]])
