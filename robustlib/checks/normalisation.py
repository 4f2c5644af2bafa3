"""The check of the normalisation: was a model hardly better than chance given images as it was trained on?"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.checks.thresholds import PASS, CheckResult, check_result
from robustlib.inference.image_rows import Images
from robustlib.inference.predict import predict
from robustlib.memory import as_many_as_fit, out_of_memory
from robustlib.models.layers import Normalize
from robustlib.normalisations import NORMALISATIONS
from robustlib.number_text import counted, fractions
from robustlib.outcome import Outcome

MOST, LEAST = 128, 30  # images looked at, and how many tell anything
NEAR = 0.25  # of the way from naming one class for all to naming each its own: below that a model is near chance
ALIKE = 0.02  # so many images cannot tell apart what differs by less: the usual normalisations lie close together

Usual = tuple[str, Tensor, Tensor]  # the line that says so, mean, standard deviation


def normalisation(model: nn.Module, x: Images, y: Tensor, outcome: Outcome) -> CheckResult:
    """How much more accurate another usual normalisation makes it. x, y: as the outcome has them.

    It is looked at only where the clean accuracy is near chance; a few passes of at most 128 images.
    """
    clean = float(outcome.clean_correct.mean())
    often = float(np.bincount(outcome.label).max() / len(outcome.label))
    if len(outcome.label) < LEAST:
        return check_result("normalisation", None, "too few images to tell")
    if clean >= often + NEAR * (1 - often):
        return check_result("normalisation", None, "its clean accuracy is not near chance")
    # Evenly, not the first of them: data sets may lie sorted by class.
    rows = torch.from_numpy(np.linspace(0, len(x) - 1, min(len(x), MOST)).astype(int)).to(x.device)
    x, y = x[rows], y[rows]
    own = accuracy(model, x, y)
    tried = [(accuracy(model, shifted(model, x, mean, std), y), words) for words, mean, std in usual(model, x)]
    best, words = max(tried, key=lambda one: one[0])
    alike = [other.partition(" (")[0] for gained, other in tried if gained > best - ALIKE and other != words]
    words += f", nearly so with {', '.join(alike)}" if alike else ""
    found = check_result("normalisation", max(0.0, best - own))
    before, after = fractions((own, best))
    much = f"clean accuracy {before}, but {after} with {words}, on {counted(len(x), 'image')}"
    return replace(found, note="no usual one gives much more" if found.verdict == PASS else much)


def usual(model: nn.Module, x: Tensor) -> Iterator[Usual]:
    """Normalisations that networks are trained with, each with the line that asks for it."""
    channels, like = x.shape[1], x.new_tensor
    layer = first_layer(model)
    if layer is not None and ((layer.mean != 0).any() or (layer.std != 1).any()):
        yield "no `normalize` (or without --normalize, --mean and --std)", like([0.0]), like([1.0])
    for name, (mean, std) in NORMALISATIONS.items():
        if len(mean) == channels:
            yield f"`normalize: {name}` (or --normalize {name})", like(mean), like(std)
    yield "`normalize: dataset` (or --normalize dataset)", x.mean((0, 2, 3)), x.std((0, 2, 3)).clamp_min(1e-3)
    yield "`normalize: {mean: 0.5, std: 0.5}` (or --mean 0.5 --std 0.5)", like([0.5]), like([0.5])
    yield "`normalize: {mean: 0, std: 1/255}` (or --mean 0 --std 1/255)", like([0.0]), like([1 / 255])


def first_layer(model: nn.Module) -> Normalize | None:
    return next((layer for layer in model.modules() if isinstance(layer, Normalize)), None)


def shifted(model: nn.Module, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images that the model's own first layer, where it has one, makes into those normalised so."""
    x = (x - mean[:, None, None]) / std[:, None, None]
    layer = first_layer(model)
    return x if layer is None else x * layer.std + layer.mean


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Over as many images as memory holds, again and again. 0 where the model does not take such images."""
    right = done = 0
    try:
        while done < len(x):
            rest = x[done:]
            found = as_many_as_fit(lambda n, rest=rest: predict(model, rest[:n]), len(rest))
            right += int((found == y[done : done + len(found)]).sum())
            done += len(found)
    except (ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        # Whatever a user's model raises at images beyond [0, 1].
        return 0.0
    return right / len(x)
