"""A model that counts the images it is shown."""

from torch import Tensor, nn


class Counted(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.shown = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        return self.net(x)
