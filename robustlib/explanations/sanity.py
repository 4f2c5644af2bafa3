"""Sanity of an explanation: does it depend on the weights, and does it find what the class depends on?"""

import copy
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from robustlib.explanations.curves import deletion, insertion
from robustlib.rng import Draws, generator, seeded

ALIKE = 0.8  # mean rank correlation with the map of randomised weights from which an explanation is marked
LEVEL = 0.05  # of the test that its order is better than none


def with_random_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of the model that knows nothing: Adebayo et al. 2018, https://arxiv.org/abs/1810.03292.

    Layers that can are initialised anew; the entries of all other parameters are shuffled.
    """
    found = copy.deepcopy(model)
    order = generator(seed, "explanations/randomised")
    device = next((parameter.device for parameter in found.parameters()), torch.device("cpu"))
    with seeded(seed, "explanations/randomised", device), torch.no_grad():
        done: set[int] = set()
        for layer in found.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
                done |= {id(parameter) for parameter in layer.parameters(recurse=False)}
        for parameter in found.parameters():
            if id(parameter) not in done and parameter.numel() > 1:
                places = torch.randperm(parameter.numel(), generator=order).to(parameter.device)
                parameter.copy_(parameter.flatten()[places].reshape(parameter.shape))
    return found


def relevance(
    model: nn.Module, x: Tensor, target: Tensor, attribution: Tensor, *, steps: int = 16, baseline: float = 0.0
) -> Tensor:
    """Insertion less deletion, float64, shape (B,): 0 on average for a random order of pixels, whatever the model is
    sensitive to, since hiding a random half and keeping it are the same. Bluecher et al. 2024,
    https://arxiv.org/abs/2401.06654, call it symmetric relevance gain.
    """
    options = {"steps": steps, "baseline": baseline}
    return insertion(model, x, target, attribution, **options) - deletion(model, x, target, attribution, **options)


def random_order(x: Tensor, draws: Draws) -> Tensor:
    """An attribution that knows nothing, shape (B, 1, H, W)."""
    return draws.uniform((1, *x.shape[-2:]), "explanations/random-order").to(x.device)


def faults(similarity: np.ndarray, gains: np.ndarray, random_gains: np.ndarray) -> list[str]:
    """What speaks against an explanation, in words; empty where nothing does.

    similarity: each image's rank correlation of the map with that of randomised weights; NaN where one is constant.
    gains, random_gains: each image's `relevance`, and that of a random order.
    """
    found: list[str] = []
    constant = np.isnan(similarity)
    if constant.mean() > 0.5:
        found.append("the map is constant on most images")
    elif (alike := float(np.nanmean(similarity))) >= ALIKE:
        found.append(
            f"the map hardly changes with randomised weights: rank correlation {alike:.2f}, below {ALIKE} expected"
        )
    differences = gains - random_gains
    test: Any = stats.wilcoxon(differences, alternative="greater") if differences.any() else None
    if test is None or test.pvalue >= LEVEL:
        found.append(
            f"its order of pixels is no better than a random one: relevance gain {gains.mean():.3f}, "
            f"random {random_gains.mean():.3f}"
        )
    return found
