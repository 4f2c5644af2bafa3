"""Statistics of single images: brightness, contrast, fine detail; and the ranges that they have on clean images.

Each is a mean of squares or of pixels, so that NumPy and torch compute it by the same lines, and an attack can follow
its slope. Attacks in a small ball change the fine detail most: noise of size eps adds 6 eps^2 to it each way.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

Images = TypeVar("Images", bound=Any)  # an array, or a tensor
Ranges = Mapping[str, tuple[float, float]]
PIXELS = (1, 2, 3)


def image_statistics(x: Images) -> dict[str, Images]:
    """Numbers of each image, shape (B,) each. x: floats in [0, 1], shape (B, C, H, W), an array or a tensor.

    mean, variance: of all pixels.  detail: the mean square of second differences, along columns and along rows, summed.
    """
    mean = x.mean(PIXELS)
    found = {"mean": mean, "variance": ((x - mean[:, None, None, None]) ** 2).mean(PIXELS), "detail": 0 * mean}
    if min(x.shape[2:]) > 2:
        down = x[:, :, 2:] - 2 * x[:, :, 1:-1] + x[:, :, :-2]
        right = x[:, :, :, 2:] - 2 * x[:, :, :, 1:-1] + x[:, :, :, :-2]
        found["detail"] = (down**2).mean(PIXELS) + (right**2).mean(PIXELS)
    return found


def ranges_of(x: np.ndarray, outside: float) -> dict[str, tuple[float, float]]:
    """The range of each statistic that all but a share of clean images lie in, half of it beyond each end."""
    if not 0 <= outside < 1:
        raise ValueError(f"ranges_of: expected a share outside from 0 to below 1, got {outside}")
    found = image_statistics(x.astype(np.float32, copy=False))
    ends = {name: np.quantile(value, (outside / 2, 1 - outside / 2)) for name, value in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def out_of_range(x: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Which images have some statistic outside its range, or none that is a number, shape (B,), bool."""
    found = image_statistics(x.astype(np.float32, copy=False))
    within = [(low <= found[name]) & (found[name] <= high) for name, (low, high) in ranges.items()]
    return ~np.logical_and.reduce(within) if within else np.zeros(len(x), bool)
