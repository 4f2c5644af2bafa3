"""Means and standard deviations that published networks were trained with, and what such numbers may be.

By channel, on the scale [0, 1]. Free of torch, as the settings are.
"""

import math
from collections.abc import Sequence

from robustlib.number_text import counted

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # The training split's own, as most published recipes for these sets have them: kuangliu/pytorch-cifar and
    # weiaicunzai/pytorch-cifar100 on GitHub.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    # torchvision's weights and most others, https://pytorch.org/vision/stable/models.html
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError for what is no mean or no standard deviation of images in [0, 1]."""
    if len(mean) != len(std) or not mean:
        raise ValueError(f"expected as many means as standard deviations, got {len(mean)} and {len(std)}")
    for value in std:
        if not 0 < value < math.inf:
            raise ValueError(f"expected a standard deviation above 0 and finite, got {value:g}")
    for value in mean:
        if not math.isfinite(value):
            raise ValueError(f"expected a finite mean, got {value:g}")
        if value > 1:
            raise ValueError(
                f"expected a mean of images in [0, 1], got {value:g}: where mean and std are on the scale of 0 to 255, "
                "divide both by 255"
            )


def by_channel(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[list[float], list[float]]:
    """One number for each channel, also where one stands for all. Raises ValueError for another number of them."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"expected normalize to have {counted(channels, 'value')} of {name}, one a channel of the images, "
                f"or one for all, got {len(values)}"
            )
    return list(mean) * (channels // len(mean)), list(std) * (channels // len(std))
