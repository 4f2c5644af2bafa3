"""Defences that change the images before the model sees them.

Each is a module with the change as its submodule `before` and the given model as `model`. A change keeps the images'
shape and dtype. What it does to gradients is its own affair: an evaluation finds a defence as its user would build it.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from robustlib.arguments import checked_options


class Preprocessed(nn.Module):
    """A model that sees its images through `before`."""

    def __init__(self, before: nn.Module, model: nn.Module):
        super().__init__()
        self.before = before
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.before(x))


class Jpeg(nn.Module):
    """Images through a JPEG file and back, at 8 bits; without a gradient, since a file has none."""

    def __init__(self, quality: int):
        super().__init__()
        self.quality = quality

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise ValueError(f"jpeg expects images with 1 or 3 channels, got {x.shape[1]}")
        levels = (x.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        back = torch.from_numpy(np.stack([self.through_file(image) for image in levels]))
        return back.to(x.device, x.dtype).permute(0, 3, 1, 2) / 255

    def through_file(self, image: np.ndarray) -> np.ndarray:
        """One image, uint8, shape (H, W, C), compressed and read back."""
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=self.quality)
        return np.asarray(Image.open(file)).reshape(image.shape)


@checked_options
def jpeg(model: nn.Module, *, quality: int = 75) -> nn.Module:
    """JPEG compression before the model, Dziugaite et al. 2016, https://arxiv.org/abs/1608.00853.

    quality: as Pillow takes it, 1 to 95. Raises ValueError for another one, and for images not of 1 or 3 channels.
    """
    return Preprocessed(Jpeg(quality), model)


class BitDepth(nn.Module):
    """Images rounded to 2^bits levels; the gradient of rounding is zero almost everywhere, and so is this one's."""

    def __init__(self, bits: int):
        super().__init__()
        self.steps = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.steps).round() / self.steps


@checked_options
def bit_depth(model: nn.Module, *, bits: int = 4) -> nn.Module:
    """Fewer bits a channel, feature squeezing of Xu et al. 2018, https://arxiv.org/abs/1704.01155.

    bits: 1 to 8. Raises ValueError for others.
    """
    return Preprocessed(BitDepth(bits), model)


class Median(nn.Module):
    """The median of each pixel's surroundings, by channel; mirrored at the borders. Its gradient goes to that pixel."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        around = self.size // 2
        if around >= min(x.shape[2:]):
            raise ValueError(f"median of size {self.size} expects images of more than {around} pixels a side")
        windows = F.pad(x, (around,) * 4, mode="reflect").unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values  # (B, C, H, W, size * size) before it


@checked_options
def median(model: nn.Module, *, size: int = 3) -> nn.Module:
    """A median filter before the model, feature squeezing of Xu et al. 2018, https://arxiv.org/abs/1704.01155.

    size: pixels a side of the window, odd. Raises ValueError for an even one, and for images smaller than half of it.
    """
    if size % 2 == 0:
        raise ValueError(f"median: expected an odd size of at least 1, got {size}")
    return Preprocessed(Median(size), model)


class ResizePad(nn.Module):
    """Each image at a size and in a place drawn anew every pass, from torch's generator of its device."""

    def __init__(self, smallest: float):
        super().__init__()
        self.smallest = smallest

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        least = max(1, round(self.smallest * height))
        drawn = torch.rand(3, len(x), device=x.device)
        rows = (least + drawn[0] * (height + 1 - least)).floor()
        columns = (rows * width / height).round().clamp_min(1)  # the picture keeps its proportions
        return place(x, rows, columns, *((drawn[1:] * torch.stack([height - rows, width - columns]).add(1)).floor()))


def place(x: Tensor, rows: Tensor, columns: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Each image shrunk to rows x columns by bilinear interpolation, `top` and `left` pixels from the corner, on black.

    rows, columns, top, left: whole numbers, shape (B,). Returns images shaped like x.
    """
    height, width = x.shape[2:]
    # Where in the old image, from -1 to 1, the middle of each new pixel comes from.
    y_from = ((torch.arange(height, device=x.device) + 0.5 - top[:, None]) / rows[:, None] * 2 - 1).to(x.dtype)
    x_from = ((torch.arange(width, device=x.device) + 0.5 - left[:, None]) / columns[:, None] * 2 - 1).to(x.dtype)
    grid = torch.stack(
        [x_from[:, None, :].expand(-1, height, -1), y_from[:, :, None].expand(-1, -1, width)], -1
    )  # (B, H, W, 2)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@checked_options
def resize_pad(model: nn.Module, *, smallest: float = 0.9) -> nn.Module:
    """Random resizing and padding before the model, Xie et al. 2018, https://arxiv.org/abs/1711.01991.

    smallest: the least size an image is shrunk to, as a share of its own; what is left is padded with black. The paper
    pads to a larger image (299 to 331 pixels, 0.9); here the shape stays, for networks that take one size alone.
    Raises ValueError unless 0 < smallest <= 1.
    """
    return Preprocessed(ResizePad(smallest), model)


class Noise(nn.Module):
    """Fresh Gaussian noise every pass, from torch's generator of the images' device. Not cut to [0, 1]."""

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)


@checked_options
def noise(model: nn.Module, *, sigma: float = 0.1) -> nn.Module:
    """Gaussian noise before the model, fresh in every pass, as in Liu et al. 2018, https://arxiv.org/abs/1712.00673.

    sigma: its standard deviation, in units of x. Raises ValueError unless it is above 0.
    """
    return Preprocessed(Noise(sigma), model)
