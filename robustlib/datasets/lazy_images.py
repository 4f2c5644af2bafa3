"""Images that are decoded as they are asked for, indexed as a tensor is."""

import numpy as np
import torch
from torch import Tensor

from robustlib.datasets.decoded_images import Pixels


class LazyImages:
    """Images of a data set, uint8, shape (N, C, H, W): what kernels that take a data set batch by batch take for x.

    Indexed by a slice or by a tensor of rows, it gives a tensor on the CPU.
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 4

    def __init__(self, images: Pixels):
        self.images = images

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.images.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor | np.ndarray) -> Tensor:
        return torch.from_numpy(self.images[rows.numpy() if isinstance(rows, Tensor) else rows])

    def is_floating_point(self) -> bool:
        return False


ImageSet = Tensor | LazyImages
