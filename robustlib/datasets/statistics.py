"""Mean and standard deviation of a split by channel, counted in pieces: they come out the same however it is cut."""

import numpy as np

from robustlib.datasets.decoded_images import Pixels

PIECE = 512  # images at once


def statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, on the scale [0, 1]; a channel that never changes is left unscaled."""
    n, channels, height, width = images.shape
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, n, PIECE):
        x = images[start : start + PIECE]
        pixels = x.transpose(1, 0, 2, 3).reshape(channels, -1)
        counts += np.stack([np.bincount(channel, minlength=256) for channel in pixels])
    shares = counts / (n * height * width)
    levels = np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
