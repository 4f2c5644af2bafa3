"""Attacks at their edges: empty batches, images that no attack can begin from, options that studies seldom give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.attacks.surrogate_training import train_surrogate
from robustlib.norms import size
from robustlib.rng import Draws


class Plane(nn.Module):
    """Class 1 where the pixels' sum is above that of a grey image, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        rise = (x - 0.5).flatten(1).sum(1)
        return torch.stack([-rise, rise], 1)


class OneColour(nn.Module):
    """Class 1 for images of one colour alone, class 0 for all others: no boundary leads to one."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return F.one_hot((flat == flat[:, :1]).all(1).long(), 2).float()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)


@pytest.fixture
def x() -> Tensor:
    """Images of class 0."""
    return 0.2 + 0.2 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.long)


def distance(x: Tensor) -> Tensor:
    """To the plane in L2: what the sum lacks, spread over all 16 pixels."""
    return (0.5 - x).flatten(1).sum(1) / 4


@pytest.mark.parametrize("name", ["spsa", "nes"])
def test_an_empty_batch_comes_back_empty(name: str, x: Tensor, y: Tensor):
    spent = torch.full((0,), -1)
    found = ATTACKS[name](Plane(), x[:0], y[:0], queries=100, samples=10, draws=Draws(0, torch.arange(0)), spent=spent)
    assert found.shape == (0, 1, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.norms])
def test_no_images_are_none_in_every_norm(name: str, x: Tensor, y: Tensor):
    attack = ATTACKS[name]
    own = {"surrogate": nn.Flatten()} if attack.lacks_surrogate else {}
    for norm in attack.norms:
        assert attack(nn.Flatten(), x[:0], y[:0], norm=norm, eps=0.1, **own).shape == (0, 1, 4, 4)


def test_deepfool_takes_images_and_a_model_in_half_precision(x: Tensor, y: Tensor):
    found = ATTACKS["deepfool"](Plane(), x.half(), y)
    assert found.dtype == torch.float16
    torch.testing.assert_close(size(found - x, "L2"), 1.02 * distance(x), rtol=0.02, atol=0)


def test_a_step_of_ones_own_is_taken_whole(x: Tensor, y: Tensor):
    """FGSM up a plane: every pixel rises by the step, within the ball."""
    for step_size, moved in ((0.05, 0.05), (0.3, 0.1)):
        found = ATTACKS["fgsm"](Plane(), x, y, eps=0.1, step_size=step_size)
        torch.testing.assert_close(found, x + moved)


@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_fab_without_a_radius_comes_to_the_plane(name: str, x: Tensor, y: Tensor):
    found = ATTACKS[name](Plane(), x, y, norm="L2", eps=None, steps=20)
    assert (Plane()(found).argmax(1) != y).all()
    torch.testing.assert_close(size(found - x, "L2"), distance(x), rtol=0.02, atol=0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_fab_from_a_random_start_ends_within_the_radius(norm: Norm, x: Tensor, y: Tensor):
    """An image is done with once one within its radius was found, so that another start ends elsewhere."""
    eps = 0.3 if norm == "Linf" else 1.0
    draws = Draws(0, torch.arange(len(x)))
    one, other = (
        ATTACKS["fab"](Plane(), x, y, norm=norm, eps=eps, random_start=start, draws=draws) for start in (True, False)
    )
    for found in (one, other):
        assert (Plane()(found).argmax(1) != y).all() and (size(found - x, norm) <= eps).all()
    assert not torch.equal(one, other)


def test_hopskipjump_that_finds_nothing_gives_the_image_back(x: Tensor, y: Tensor):
    """It asks of the image and of each that it makes up to begin from, and of no more."""
    spent = torch.zeros(len(x), dtype=torch.long)
    draws = Draws(0, torch.arange(len(x)))
    found = ATTACKS["hopskipjump"](Constant(), x, y, queries=500, start_samples=7, draws=draws, spent=spent)
    assert torch.equal(found, x)
    assert spent.tolist() == [1 + 7] * len(x)


def test_hopskipjump_keeps_an_image_from_which_no_step_leads_on(x: Tensor, y: Tensor):
    found = ATTACKS["hopskipjump"](OneColour(), x, y, queries=500, draws=Draws(0, torch.arange(len(x))))
    flat = found.flatten(1)
    assert (flat == flat[:, :1]).all()


def test_a_surrogate_learns_from_a_pool_with_one_image_left_over():
    """65 images in batches of 64: BatchNorm cannot take the last alone."""
    pool = 0.3 * torch.rand(65, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pool[::2] += 0.7
    net = train_surrogate(Plane(), pool, 2)
    assert (net(pool).argmax(1) == Plane()(pool).argmax(1)).float().mean() > 0.9


def test_corruptions_take_no_images_and_refuse_two_channels():
    pytest.importorskip("imagecorruptions", reason="needs the extra `corruptions`")
    empty, none = torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long)
    assert ATTACKS["corruption"](Plane(), empty, none, kind="fog", severity=1) is empty
    with pytest.raises(
        ValueError, match=r"^corruption expects images with 1 or 3 channels and at least 32x32 pixels, "
    ):
        ATTACKS["corruption"](Plane(), torch.zeros(1, 2, 32, 32), none.new_zeros(1), kind="fog", severity=1)


def test_norms_are_those_of_the_signature():
    assert [ATTACKS[name].norms for name in ("pgd", "cw", "clean")] == [("Linf", "L2", "L1"), ("L2",), ()]


class Rounded(nn.Module):
    """A small network whose logits come in this precision."""

    def __init__(self, *kinds: torch.dtype):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.weight, self.kinds = torch.randn(5, 16, generator=draw), kinds

    def forward(self, x: Tensor) -> Tensor:
        logits = (x - 0.5).flatten(1) @ self.weight.T
        for kind in self.kinds:
            logits = logits.to(kind)
        return logits


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.norms and name != "transfer"])
def test_a_model_that_answers_in_half_precision_is_attacked_as_its_twin(name: str, x: Tensor):
    """The twin's logits are rounded alike and handed on in float32: every attack finds what it finds there."""
    half, twin = Rounded(torch.float16), Rounded(torch.float16, torch.float32)
    attack, y = ATTACKS[name], twin(x).argmax(1)
    few = {"steps": 5, "queries": 60, "samples": 10}
    how = {option: value for option, value in few.items() if option in attack.defaults}
    for norm in attack.norms:
        radius = {"eps": 0.1 if norm == "Linf" else 0.5} if attack.takes_eps else {}
        draws = Draws(0, torch.arange(len(x)))
        found, wanted = (attack(model, x, y, norm=norm, draws=draws, **radius, **how) for model in (half, twin))
        assert found.dtype == torch.float32 and torch.allclose(found, wanted, atol=0.01), norm
        assert torch.equal(twin(found).argmax(1), twin(wanted).argmax(1)), norm
