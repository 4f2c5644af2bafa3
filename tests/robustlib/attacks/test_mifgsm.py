"""MI-FGSM on a linear model, whose boundary is known, and against the paper's loop written out for one image."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.attacks.mifgsm import mifgsm
from robustlib.evaluation.attack_sequence import attack_in_sequence
from robustlib.norms import size

WEIGHT = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DISTANCE = torch.linspace(0.02, 0.1, 33, dtype=torch.float64)  # in Linf, of each image to the plane


class Plane(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rise = (x - 0.5).flatten(1) @ WEIGHT
        return torch.stack([-rise, rise], 1)


class Curved(nn.Module):
    """A network whose gradient turns on the way."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.first, self.last = (
            4 * torch.randn(16, n, generator=generator, dtype=torch.float64) / n**0.5 for n in (64, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.first.T).sin() @ self.last


def beside_the_plane() -> tuple[Tensor, Tensor]:
    """Images of class 0, each at its distance."""
    x = 0.5 - DISTANCE[:, None] * WEIGHT.sign()
    return x.reshape(-1, 1, 8, 8), torch.zeros(len(x), dtype=torch.int64)


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_breaks_exactly_what_is_nearer_than_eps(steps: int, decay: float):
    x, y = beside_the_plane()
    eps = 0.0613
    x_adv = mifgsm(Plane(), x, y, eps=eps, steps=steps, decay=decay)
    fell = Plane()(x_adv).argmax(1) != y
    assert torch.equal(fell, eps > DISTANCE)
    assert size(x_adv - x, "Linf")[~fell].sub(eps).abs().max() < 1e-12


def test_a_fallen_image_stays_where_it_fell():
    """At a tenth of the radius a step, it falls with the first step that leads over the plane."""
    x, y = beside_the_plane()
    x_adv = mifgsm(Plane(), x, y, eps=0.2, steps=10)
    steps = (DISTANCE / 0.02).floor() + 1
    assert (size(x_adv - x, "Linf") - 0.02 * steps)[(DISTANCE / 0.02) % 1 > 1e-6].abs().max() < 1e-12


def loop(x: Tensor, y: Tensor, eps: float, steps: int, decay: float) -> Tensor:
    """Algorithm 1 of the paper for one image, until it is misclassified."""
    model, moved, g = Curved(), x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        moved.requires_grad_(True)
        logits = model(moved)
        if logits.argmax(1) != y:
            break
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), moved)
        g = decay * g + slope / slope.abs().sum()
        moved = (moved.detach() + eps / steps * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return moved.detach()


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_it_is_the_papers_loop(decay: float):
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = Curved()(x).argmax(1)
    eps, steps = 0.04, 8
    x_adv = mifgsm(Curved(), x, y, eps=eps, steps=steps, decay=decay)
    twin = torch.cat([loop(x[i : i + 1], y[i : i + 1], eps, steps, decay) for i in range(len(x))])
    torch.testing.assert_close(x_adv, twin, rtol=0, atol=1e-12)
    assert 0 < (Curved()(x_adv).argmax(1) != y).sum() < len(x)
    if decay:
        assert not torch.equal(x_adv, mifgsm(Curved(), x, y, eps=eps, steps=steps, decay=0.0))


def test_it_keeps_the_box_and_a_flat_loss_moves_nothing():
    x, y = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :2] + torch.tensor([1.0, 0.0])

    assert torch.equal(mifgsm(Flat(), x, y, eps=0.3), x)
    x_adv = mifgsm(Plane(), x.double(), y, eps=0.3)
    assert x_adv.min() >= 0 and x_adv.max() <= 0.3 + 1e-12


def test_it_is_an_attack_like_others():
    x, y = beside_the_plane()
    found = attack_in_sequence(Plane(), x, y, [ATTACKS["mifgsm"].given(eps=0.0613)])
    assert torch.equal(found.prediction != y, DISTANCE < 0.0613)
    with pytest.raises(ValueError, match="mifgsm: expected norm Linf, got 'L2': fmn and fab take all"):
        ATTACKS["mifgsm"](Plane(), x, y, norm="L2")
