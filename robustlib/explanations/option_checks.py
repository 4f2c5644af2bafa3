"""Checks of an explanation's options against images and a model, before anything is explained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robustlib.explanations.grad_cam import find_layer
from robustlib.explanations.kernel_shap import kernel_shap
from robustlib.explanations.lime import lime
from robustlib.explanations.occlusion import occlusion
from robustlib.inference.model_modes import evaluating
from robustlib.inference.oracle import as_oracle

# Explanations whose options must fit the images, which any model of these shows.
OF_IMAGES = {"lime": lime, "kernel-shap": kernel_shap, "occlusion": occlusion}


def check_options(method: str, options: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Raises ValueError, as the explanation itself would, for options that do not fit images of shape (C, H, W)."""
    if method in OF_IMAGES:
        stand_in = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 2))
        OF_IMAGES[method](stand_in, torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64), **options)


def check_layer(model: nn.Module, shape: tuple[int, ...], layer: str | None) -> None:
    """Raises ValueError for a model that Grad-CAM finds no layer in. shape: of an image, (C, H, W)."""
    with evaluating(model):
        find_layer(as_oracle(model), torch.zeros(1, *shape), layer)
