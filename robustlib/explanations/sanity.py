"""Sanity of an explanation: does it depend on the weights, and does it find what the class depends on?"""

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.checks.explanation_sanity import sanity_checks
from robustlib.checks.thresholds import PASS
from robustlib.explanations.curves import deletion, insertion
from robustlib.explanations.measures import signed_spearman
from robustlib.inference.model_modes import copied
from robustlib.rng import Draws, generator, seeded


def with_random_weights(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A copy of the model that knows nothing: Adebayo et al. 2018, https://arxiv.org/abs/1810.03292.

    Layers that can are initialised anew; the entries of all other parameters are shuffled.
    """
    found = copied(model)
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


def weight_similarity(attribution: Tensor, randomised: Tensor) -> Tensor:
    """How alike a map is to that of randomised weights: the rank correlation of their sums over channels, signs
    included, float64, shape (B,). NaN where the map is constant, 0 where that of randomised weights alone is.
    """
    alike = signed_spearman(attribution, randomised)
    return torch.where(alike.isnan() & ~signed_spearman(attribution, attribution).isnan(), 0.0, alike)


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
    """What speaks against an explanation, in words; empty where nothing does. Arguments: see `sanity_checks`."""
    return [check.note for check in sanity_checks(similarity, gains, random_gains) if check.verdict != PASS]
