"""Some images of a data set, moved to a device as rows of them are asked for."""

import torch
from torch import Tensor

from robustlib.datasets.lazy_images import ImageSet
from robustlib.inference.model_modes import as_images


class ImageRows:
    """Images as floats in [0, 1] on a device, indexed by a tensor of rows: what those need who look at a few of them.

    images: the whole data set.  index: which of its images these are, shape (N,), on the CPU.
    """

    def __init__(self, images: ImageSet, index: Tensor, device: torch.device):
        self.images, self.index, self.device = images, index, device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return as_images(self.images[self.index[rows.cpu()]], self.device)


Images = Tensor | ImageRows
