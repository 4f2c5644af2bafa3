"""LeNet-5 style network: the study's Model A."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Two 5x5 convolutions with max-pooling and three linear layers, after LeCun et al. 1998, with ReLU.

    Images smaller than 32 are padded by 2 before the first convolution, as is usual for 28x28 digits, and maps too
    small for the second convolution are padded there too, so that 8x8 images work.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32), dropout=0.0
    ):
        super().__init__()
        side = min(image_size)
        if side < 4:
            raise ValueError(f"lenet5 expects images of at least 4x4 pixels, got {image_size[0]}x{image_size[1]}")
        pad1 = 2 if side < 32 else 0
        pad2 = 2 if (side + 2 * pad1 - 4) // 2 < 10 else 0
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=pad1)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=pad2)
        height, width = (((s + 2 * pad1 - 4) // 2 + 2 * pad2 - 4) // 2 for s in image_size)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)
