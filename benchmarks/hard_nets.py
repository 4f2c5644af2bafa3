"""Networks on which half precision fails, and so would an attack that trusts it: for benchmarks and tests."""

import torch
from torch import Tensor, nn


class Steep(nn.Module):
    """A hidden value that passes float16's largest number, 65,504, on the way to the boundary, and not before.

    Takes images of 3 x 4 x 4 near 0.5, all of class 0; at 0.1 in Linf all of them fall.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 1), nn.Linear(1, 1)
        for parameter, value in zip(self.parameters(), (2500.0, 0.0, -1 / 6e4, 1.12), strict=True):
            parameter.data.fill_(value)

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(self.a(x.flatten(1)).relu())
        return torch.cat([z, -z], 1)


class Faint(nn.Module):
    """The last pixel's weight is below float16's least number, and without it the ball ends before the boundary.

    Takes images of 1 x 4 x 4; those that are 0.2 everywhere are of class 0, and at 0.1 in Linf fall in the ball's
    corner alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(16, 1, bias=False), nn.Linear(1, 2)
        weight = torch.tensor([4e-4] * 15 + [2e-8])
        # The corner, 0.3 everywhere, lies beyond the boundary by half of what the last pixel adds.
        edge = 0.3 * weight.double().sum() - 0.5 * 0.1 * 2e-8
        self.hidden.weight.data.copy_(weight)
        self.last.weight.data.copy_(torch.tensor([[-1e4], [1e4]]))
        self.last.bias.data.copy_(torch.tensor([1e4, -1e4]).double() * edge)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x.flatten(1)).relu())
