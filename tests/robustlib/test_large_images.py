"""Images of 64 x 64 and 224 x 224 pixels, where sums in float32 go astray: sizes, projections and every attack's budget
against float64; and every attack on images that are float64 themselves.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import NORMS, Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.fmn import project_each
from robustlib.evaluation.descent import shrink_to
from robustlib.hyperplane import to_plane
from robustlib.norms import draw_in_ball, dual_size, inside, project, project_in_box, shrink, size
from robustlib.rng import Draws

EPS: dict[Norm, float] = {
    "Linf": 8 / 255,
    "L2": 0.5,
    "L1": 1.0,
}  # less than the customary 12: what a sum strays by weighs more
LARGE = (3, 224, 224)
FEW = {"steps": 3, "search_steps": 2, "queries": 40, "samples": 4, "targets": 2}
WITHIN_EPS = [name for name in ATTACKS if name not in ("clean", "corruption")]
PLACES = [(name, norm) for name in WITHIN_EPS for norm in ATTACKS[name].norms]


class Linear(nn.Module):
    """Four classes. Half of the weights are alike, so that many pixels get the same perturbation."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
        super().__init__()
        weight = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weight[:, :, : shape[1] // 2] = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64).reshape(4, 1, 1, 1)
        self.weight = nn.Parameter((weight / weight[0].numel()).flatten(1).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return 100 * (x - 0.5).flatten(1) @ self.weight.T


def pictures(shape: tuple[int, ...], count: int = 2) -> Tensor:
    """Levels of 8 bits, with a white sky; the second, where there is one, of one colour throughout."""
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    x = (255 * x).round() / 255
    x[:, :, : shape[1] // 3] = 1.0
    x[1:] = 0.6
    return x


def attacked(name: str, norm: Norm, model: nn.Module, x: Tensor, eps: float) -> Tensor:
    takes = ATTACKS[name].params
    options: dict[str, Any] = {key: value for key, value in FEW.items() if key in takes}
    options |= {"norm": norm} if "norm" in takes else {}
    options |= {"eps": eps} if "eps" in takes else {}
    options |= {"surrogate": model} if name == "transfer" else {}
    options |= {"queries": 4} if name == "noise" else {}
    options |= {"queries": 60} if name == "hopskipjump" and x.dtype == torch.float64 else {}
    with torch.no_grad():
        y = model(x).argmax(1)
    return ATTACKS[name](model, x, y, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), PLACES)
@pytest.mark.parametrize("side", [64, 224])
def test_every_attack_keeps_its_budget(side: int, name: str, norm: Norm):
    x = pictures((3, side, side), 2 if side == 64 else 1)
    model = Linear(x.shape[1:])
    x_adv = attacked(name, norm, model, x, EPS[norm])
    assert inside(x_adv, x, EPS[norm], norm).all()
    # By float64 too. In L2 each pixel may be rounded by half a spacing.
    rounding = {"Linf": 2**-24, "L2": 2**-25 * x[0].numel() ** 0.5, "L1": 0.0}[norm]
    assert size(x_adv.double() - x.double(), norm).max() <= EPS[norm] * (1 + 1e-5) + rounding


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.05, 0.5, 12.0])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "noise"])
def test_l1_holds_on_pictures_of_one_colour(name: str, eps: float):
    """Pixels that are alike are rounded alike: to the nearest, 0.05 became 0.0538."""
    x = torch.cat([torch.full((1, *LARGE), level) for level in (0.9, 0.3)])
    x_adv = attacked(name, "L1", Linear(LARGE), x, eps)
    assert size(x_adv.double() - x.double(), "L1").max() <= eps * (1 + 1e-6)


@pytest.mark.parametrize("level", [0.3, 0.5, 1.0])
def test_the_budget_check_allows_for_rounding_every_pixel(level: float):
    x = torch.full((1, *LARGE), level)
    x_adv = x - 0.1 / x[0].numel() ** 0.5
    assert inside(x_adv, x, 0.1, "L2").all()
    assert not inside(x - 0.1002 / x[0].numel() ** 0.5, x, 0.1, "L2").any()


def perturbations() -> dict[str, Tensor]:
    even = torch.full((2, *LARGE), 0.0313)
    random = torch.randn(2, *LARGE, generator=torch.Generator().manual_seed(2))
    return {"even": even, "signs": 0.03 * random.sign(), "random": random, "few": random * (random > 2.5)}


@pytest.mark.parametrize("kind", perturbations())
@pytest.mark.parametrize("norm", NORMS)
def test_sizes_are_those_of_float64(norm: Norm, kind: str):
    delta = perturbations()[kind]
    for measure in (size, dual_size):
        torch.testing.assert_close(measure(delta, norm).double(), measure(delta.double(), norm), rtol=4e-6, atol=0)


@pytest.mark.parametrize("numbers", [784, 3072, 4096])
def test_the_size_of_a_small_image_keeps_its_bits(numbers: int):
    delta = torch.randn(5, numbers, generator=torch.Generator().manual_seed(3))
    assert torch.equal(size(delta, "L2"), delta.norm(dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", perturbations())
@pytest.mark.parametrize("eps", [0.5, 12.0])
@pytest.mark.parametrize("norm", NORMS)
def test_projections_are_those_of_float64(norm: Norm, eps: float, kind: str):
    delta, x = perturbations()[kind], pictures(LARGE)
    exact = project(delta.double(), eps, norm)
    assert size(exact, norm).max() <= eps * (1 + 1e-12)
    for found in (project(delta, eps, norm), project_each(delta, torch.full((2,), eps), norm)):
        torch.testing.assert_close(found.double(), exact, rtol=4e-6, atol=1e-7)
        assert size(found.double(), norm).max() <= eps * (1 + 5e-6)
    boxed = project_in_box(x.double(), delta.double(), eps, norm)
    torch.testing.assert_close(project_in_box(x, delta, eps, norm).double(), boxed, rtol=4e-6, atol=2e-7)


def test_the_l1_projection_in_the_box_is_the_nearest_point():
    """It is sign(d) clamp(|d| - t, 0, room) with the t that uses up the radius, here found by bisection."""
    delta, x = perturbations()["random"], pictures(LARGE)
    room = torch.where(delta > 0, 1 - x, x).double()
    low, high = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.full((2, 1, 1, 1), 10.0, dtype=torch.float64)
    for _ in range(60):
        t = (low + high) / 2
        over = ((delta.double().abs() - t).clamp_min(0).minimum(room)).sum((1, 2, 3), keepdim=True) > 12
        low, high = torch.where(over, t, low), torch.where(over, high, t)
    exact = (delta.double().abs() - high).clamp_min(0).minimum(room) * delta.sign()
    torch.testing.assert_close(shrink(delta, room.float(), 12.0).double(), exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_the_step_to_a_plane_is_that_of_float64(norm: Norm):
    """From a plane so far that most pixels go to the border, and a value that is the difference of large sums."""
    x, normal = pictures(LARGE), torch.randn(2, *LARGE, generator=torch.Generator().manual_seed(4))
    room = torch.where(normal < 0, 1 - x, x)
    value = 0.5 * (room * normal.abs()).double().flatten(1).sum(1).float()
    step = to_plane(x, normal, value, norm)
    reached = (step.double() * normal).flatten(1).sum(1)
    torch.testing.assert_close(reached, -value.double(), rtol=3e-6, atol=0)
    exact = to_plane(x.double(), normal.double(), value.double(), norm)
    torch.testing.assert_close(size(step, norm).double(), size(exact, norm), rtol=1e-5, atol=0)


def test_a_draw_from_the_l1_ball_lies_in_it():
    like = torch.zeros(4, *LARGE)
    found = draw_in_ball(like, 12.0, "L1", Draws(0, torch.arange(4)), "start").double()
    # In so many dimensions nearly all of the ball lies at its edge: 1 - size / eps is of the order of 1 / dimensions.
    share = size(found, "L1") / 12
    assert share.max() <= 1 + 1e-6 and share.min() > 1 - 1e-4


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_drawn_back_to_a_radius_lies_within_it(norm: Norm):
    x = torch.full((2, *LARGE), 0.9)
    eps = torch.full((2,), EPS[norm], dtype=torch.float64)
    found = shrink_to(x - 0.2, x, eps, norm)
    assert inside(found, x, EPS[norm], norm).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [*PLACES, ("clean", "Linf"), ("corruption", "Linf")])
def test_float64_images_are_attacked_in_float64(name: str, norm: Norm):
    side = 32 if name == "corruption" else 8
    model = Linear((3, side, side), torch.float64)
    x = torch.rand(6, 3, side, side, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x_adv = attacked(name, norm, model, x, EPS[norm])
    assert x_adv.dtype == torch.float64 and x_adv.shape == x.shape
    if name in WITHIN_EPS:
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert size(x_adv - x, norm).max() <= EPS[norm] * (1 + 1e-9)
