"""Steps in L1: on a linear model within the box, filling the steepest pixels one after the other is the optimum."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks.pgd import fgsm, pgd
from robustlib.attacks.random_search import noise
from robustlib.checks.gradient_checks import rises
from robustlib.inference.predict import correct
from robustlib.norms import ascent_step, inside, size

N, SHAPE = 30, (3, 6, 6)


class Tilted(nn.Module):
    """Two classes; the second logit minus the first is <w, x - 1/2>, plus ten, so that all images are of the second."""

    def __init__(self):
        super().__init__()
        self.w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - 0.5) * self.w).flatten(1).sum(1) + 10
        return torch.stack([torch.zeros_like(rise), rise], 1)


@pytest.fixture
def images() -> Tensor:
    """Half of the pixels are black or white."""
    return (2 * torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1)) - 0.5).clamp(0, 1)


def greedy(image: list[float], slope: list[float], length: float) -> list[float]:
    """The point of the box within `length` at which a function of this slope is largest: pixel by pixel."""
    point = list(image)
    for pixel in sorted(range(len(slope)), key=lambda i: -abs(slope[i])):
        step = min(length, 1 - image[pixel] if slope[pixel] > 0 else image[pixel])
        point[pixel] += step if slope[pixel] > 0 else -step
        length -= step
    return point


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.3, 2.0, 12.0, 200.0])
def test_fgsm_is_the_optimum_of_a_linear_model_in_the_box(eps: float, images: Tensor):
    model, y = Tilted(), torch.ones(N, dtype=torch.long)
    slope = (-model.w).flatten().tolist()
    exact = torch.tensor([greedy(image.tolist(), slope, eps) for image in images.double().flatten(1)])
    found = fgsm(model, images, y, norm="L1", eps=eps, loss="margin")
    torch.testing.assert_close(found.flatten(1), exact, rtol=0, atol=2e-6)
    assert inside(found, images, eps, "L1").all()
    # The steps of PGD are no longer and end in the same place, but for the budget that is still in less steep pixels.
    steps = pgd(model, images, y, norm="L1", eps=eps, loss="margin", steps=40)
    most, reached = (((point - images) * -model.w).flatten(1).sum(1) for point in (found, steps))
    assert (reached >= 0.95 * most).all() and (reached <= most * (1 + 1e-5)).all()


def test_a_step_has_its_length_and_leaves_alone_what_has_no_slope(images: Tensor):
    slope = torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(2)) * (images > 0.2)
    room = (torch.where(slope > 0, 1 - images, images) * (slope != 0)).flatten(1).sum(1)
    for length in (0.1, 3.0, 1000.0):
        step = ascent_step(images, slope, length, "L1", most=1.0)
        assert (step * slope >= 0).all() and (step[slope == 0] == 0).all()
        torch.testing.assert_close(size(step, "L1"), room.clamp_max(length))
        assert ((images + step >= 0) & (images + step <= 1)).all()
        each = ascent_step(images, slope, torch.full((N,), length), "L1", most=1.0)
        assert torch.equal(each, step)
    assert ascent_step(images, slope, 3.0, "L1", most=0.1).abs().max() <= 0.1 + 1e-6
    assert torch.equal(ascent_step(images, torch.zeros_like(images), 3.0, "L1"), torch.zeros_like(images))


def test_a_larger_radius_never_leaves_more_standing(net: nn.Module, test):
    """On the digits, half of whose pixels lie on the box; moving one pixel in a hundred, ever more stood for good."""
    x, y = test
    stands = [correct(net, fgsm(net, x, y, norm="L1", eps=eps), y).float().mean() for eps in (0.0, 1, 2, 4, 8, 16, 32)]
    # A single step may lead past the other class: on some processors' network 5 of 449 stand at 32, where 3 do at 16.
    assert all(after <= before + 0.005 for before, after in pairwise(stands))
    assert stands[0] > 0.95 and stands[-1] < 0.2


def test_points_of_noise_use_up_the_radius(images: Tensor):
    """Every other is sparse, and has the room in the box that it needs."""
    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)

    noise(model, images, torch.ones(N, dtype=torch.long), norm="L1", eps=12.0, queries=4)  # type: ignore[arg-type]
    for point in seen[1::2]:
        torch.testing.assert_close(size(point - images, "L1"), torch.full((N,), 12.0))
        assert (point == images).flatten(1).float().mean(1).min() > 0.5


def test_the_slope_is_found_where_the_steepest_pixels_lie_on_the_box():
    model = Tilted()
    x = torch.full((4, *SHAPE), 0.5)
    steep = model.w.abs() > model.w.abs().flatten().sort().values[-10]
    x[:, steep] = (model.w < 0).float()[steep]  # nothing is to be had from them
    gained, promised = rises(model, x, torch.ones(4, dtype=torch.long), "L1", 0.5)
    assert (promised > 0.5).all()
    torch.testing.assert_close(gained, promised, rtol=1e-3, atol=1e-5)
