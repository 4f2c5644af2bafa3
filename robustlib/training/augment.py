"""Augmentation on the device, each image by its own random numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.rng import Draws


def augment(x: Tensor, draws: Draws, *, crop: int, flip: bool) -> Tensor:
    """Random crop after zero-padding by `crop` pixels, and mirroring of half the images. x: (B, C, H, W)."""
    if flip:
        mirrored = draws.uniform((1, 1, 1), "augment/flip") < 0.5
        x = torch.where(mirrored, x.flip(3), x)
    if crop:
        height, width = x.shape[2:]
        shift = (draws.uniform((2,), "augment/crop") * (2 * crop + 1)).long()  # (B, 2)
        rows = shift[:, :1] + torch.arange(height, device=x.device)  # (B, H)
        columns = shift[:, 1:] + torch.arange(width, device=x.device)  # (B, W)
        padded = F.pad(x, (crop, crop, crop, crop))
        batch = torch.arange(len(x), device=x.device)[:, None, None]
        # Advanced indices with the channels between them: the channels come out last.
        x = padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return x
