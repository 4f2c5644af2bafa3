"""Points of a line, pooled and not: the values and the sums of gradients of PyTorch's own layers, to the bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustlib.inference import line_points
from robustlib.inference.line_points import Line, PooledLine

PLACES = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0])


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Small ones: many are equal, and nothing that is computed of them is rounded."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("kind", [Line, PooledLine])
def test_values_and_sums_are_those_of_the_layers(kind: type[Line], shape: tuple[int, ...], last: bool, monkeypatch):
    monkeypatch.setattr(line_points, "BLOCK_BYTES", 3 * 16 * 2 * 6)  # blocks that do not divide the points
    start, end = whole_numbers(*shape, seed=1), whole_numbers(*shape, seed=2)
    line = kind(shape, len(PLACES), start, last=last)
    x = (start + PLACES[:, None, None, None] * (end - start)).requires_grad_()
    expected = F.relu(F.max_pool2d(x, 2)) if kind is PooledLine else x * 1
    into = whole_numbers(*expected.shape, seed=3)
    (slopes,) = torch.autograd.grad(expected, x, into)
    for _ in range(2):  # the second time what is left of the first must not count
        line.begin(start, end)
        points, found = start.new_empty(len(PLACES), line.size), torch.full(shape, torch.nan)
        line.points(PLACES, points)
        assert torch.equal(line.image_of(points), expected)
        assert torch.equal(line.image_of(line.flat(expected.detach())), expected)
        line.add(points, line.flat(into))
        line.put(found)
        assert torch.equal(found, slopes.sum(0))
