"""A linear network, images and labels for it, and such as do not fit, with what is said of them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustlib.rng import Draws

CLASSES, N = 3, 4


class Plane(nn.Module):
    """A linear network of three classes that counts its passes."""

    def __init__(self, classes: int = CLASSES):
        super().__init__()
        self.layer = nn.Linear(64, classes)
        torch.manual_seed(0)
        nn.init.normal_(self.layer.weight, std=0.1)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.layer(x.flatten(1))


X = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": 2 * X}, ValueError, r"expected images in \[0, 1\], got values from 0.* to 1.*: leave normalisation to"),
    ({"x": X - 0.5}, ValueError, r"expected images in \[0, 1\], got values from -0.* to 0"),
    ({"x": X.where(X < 0.9, math.nan)}, ValueError, r"expected images in \[0, 1\], got values from nan to nan"),
    ({"x": (255 * X).byte()}, TypeError, r"expected images as floats in \[0, 1\], got torch.uint8: divide them by 255"),
    ({"x": X.long()}, TypeError, r"expected images as floats in \[0, 1\], got torch.int64$"),
    ({"x": X.numpy()}, TypeError, r"expected images as a tensor of shape \(B, C, H, W\), got ndarray"),
    ({"x": X[0]}, ValueError, r"expected images of shape \(B, C, H, W\), got \(1, 8, 8\)"),
    ({"y": Y.float()}, TypeError, r"expected y as a tensor of classes, torch.int64, got torch.float32"),
    ({"y": Y.int()}, TypeError, r"expected y as a tensor of classes, torch.int64, got torch.int32"),
    ({"y": [0, 1, 2, 0]}, TypeError, r"expected y as a tensor of classes, torch.int64, got list"),
    ({"y": Y[:3]}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(3,\)"),
    ({"y": Y.repeat(2)}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(8,\)"),
    ({"y": Y[:, None]}, ValueError, r"expected y of shape \(4,\), a class for each image, got \(4, 1\)"),
    ({"y": Y - 1}, ValueError, r"expected classes of at least 0 in y, got -1"),
    ({"y": torch.full_like(Y, -100)}, ValueError, r"expected classes of at least 0 in y, got -100"),
    ({"y": Y.to("meta")}, ValueError, r"expected y on the images' device, cpu, got meta"),
    ({"draws": Draws(0, torch.arange(3))}, ValueError, r"expected draws for 4 images, shape \(4,\), got \(3,\)"),
    ({"draws": 5}, TypeError, r"expected draws of type Draws, got int"),
]  # fmt: skip
