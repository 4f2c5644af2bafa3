"""Measures of two attributions of the same image: how alike they are. One number an image, none depends on another."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM, as Wang et al. 2004 have them


def pixel_map(attribution: Tensor) -> Tensor:
    """Each pixel's share in the explanation, whatever its sign: the channels' absolute sum, shape (B, H, W)."""
    return attribution.abs().sum(1)


def most(share: float, pixels: int) -> int:
    """How many pixels a share of them is, at least 1."""
    return max(1, math.floor(share * pixels + 0.5))


def top(attribution: Tensor, share: float) -> Tensor:
    """The pixels with the largest shares in the explanation, bool, shape (B, H, W); of equal ones the first."""
    flat = pixel_map(attribution).flatten(1)
    order = flat.sort(dim=1, descending=True, stable=True).indices[:, : most(share, flat.shape[1])]
    found = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
    return found.reshape(len(attribution), *attribution.shape[-2:])


def top_intersection(a: Tensor, b: Tensor, *, share: float = 0.1) -> Tensor:
    """How much of the top pixels of two attributions they have in common, in [0, 1], float64, shape (B,).

    Ghorbani et al. 2019, https://arxiv.org/abs/1710.10547.  share: of the pixels that are top.
    """
    first, second = top(a, share), top(b, share)
    return (first & second).flatten(1).sum(1).double() / first.flatten(1).sum(1)


def near_top_intersection(a: Tensor, b: Tensor, *, share: float = 0.1, radius: int = 1) -> Tensor:
    """The same, a pixel counted as common where a top pixel of the other is at most `radius` rows and columns away:
    the mean of both ways. The tolerance is that of Wang and Kong 2023, https://arxiv.org/abs/2312.10534.
    """
    first, second = top(a, share), top(b, share)

    def covered(pixels: Tensor, by: Tensor) -> Tensor:
        near = F.max_pool2d(by[:, None].float(), 2 * radius + 1, 1, radius)[:, 0] > 0
        return (pixels & near).flatten(1).sum(1).double() / pixels.flatten(1).sum(1)

    return (covered(first, second) + covered(second, first)) / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of the pixels' shares, float64, shape (B,); NaN where an attribution is constant."""
    return rank_correlation(pixel_map(a), pixel_map(b))


def signed_spearman(a: Tensor, b: Tensor) -> Tensor:
    """The same of the sums over channels, whose signs count: two maps of an image that share no more than where it is
    black are unlike.
    """
    return rank_correlation(a.sum(1), b.sum(1))


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of values (B, ...), in float64, shape (B,); equal values share their mean rank."""
    from scipy import stats  # a second to load, which attacks on explanations and commands have no use for

    ranks = [torch.from_numpy(np.asarray(stats.rankdata(each.flatten(1).cpu().numpy(), axis=1))) for each in (a, b)]
    first, second = (each - each.mean(1, keepdim=True) for each in ranks)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of the pixels' shares, each map scaled to [0, 1], float64, shape (B,).

    Wang et al. 2004: a Gaussian window of 11 pixels, sigma 1.5, over places where it lies within the image; smaller
    images have the widest odd window that fits.
    """
    first, second = (scaled(pixel_map(each).double())[:, None] for each in (a, b))
    side = min(WINDOW, (min(first.shape[-2:]) - 1) // 2 * 2 + 1)
    line = torch.arange(side, dtype=torch.float64, device=first.device) - side // 2
    line = (-(line**2) / (2 * SIGMA**2)).exp()
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    one, two = mean(first), mean(second)
    spread_one, spread_two = mean(first**2) - one**2, mean(second**2) - two**2
    common = mean(first * second) - one * two
    steady, steadier = 0.01**2, 0.03**2
    alike = (2 * one * two + steady) * (2 * common + steadier)
    found = alike / ((one**2 + two**2 + steady) * (spread_one + spread_two + steadier))
    return found.flatten(1).mean(1)


def scaled(values: Tensor) -> Tensor:
    """Each map in [0, 1]; a constant one is 0 everywhere."""
    low, high = values.flatten(1).aminmax(dim=1)
    width = (high - low)[:, None, None]
    return torch.where(width > 0, (values - low[:, None, None]) / torch.where(width > 0, width, 1), 0.0)
