"""Three convolutional blocks and two linear layers: the study's Model B."""

import torch.nn.functional as F
from torch import Tensor, nn


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class ConvNet3(nn.Module):
    """Conv3x3 + BatchNorm + ReLU + MaxPool with 32, 64 and 128 channels, then 512 units, then the classes."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, image_size: tuple[int, int] = (32, 32), dropout=0.0
    ):
        super().__init__()
        if min(image_size) < 8:
            raise ValueError(f"convnet3 expects images of at least 8x8 pixels, got {image_size[0]}x{image_size[1]}")
        self.features = nn.Sequential(block(in_channels, 32), block(32, 64), block(64, 128))
        self.fc1 = nn.Linear(128 * (image_size[0] // 8) * (image_size[1] // 8), 512)
        self.fc2 = nn.Linear(512, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.features(x).flatten(1))
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)
