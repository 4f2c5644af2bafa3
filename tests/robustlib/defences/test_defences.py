"""Defences: each against a plain twin of what it does to the images, and through an evaluation as studies run them."""

import io
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.defences import DEFENCES, RANDOMISED
from robustlib.defences.preprocess import ResizePad, place
from robustlib.evaluation.batches import evaluate_batches
from robustlib.inference.expectation import is_randomised
from robustlib.metrics import summarise
from robustlib.outcome import join
from robustlib.rng import seeded

CPU = torch.device("cpu")
SHAPES = [(1, 8, 8), (3, 32, 32), (3, 20, 28), (1, 9, 33)]
BEFORE = [name for name in DEFENCES if name != "dropout"]  # dropout is inside of the model
FIXED = [name for name in DEFENCES if name not in RANDOMISED]


class Same(nn.Module):
    """Gives back its images as logits, so that what comes before it can be seen."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def images(shape: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def linear(shape: tuple[int, ...]) -> nn.Module:
    with seeded(0, "weights", CPU):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(int(np.prod(shape)), 4)).eval()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BEFORE)
def test_what_comes_before_keeps_shape_and_type(name: str, shape: tuple[int, ...]):
    before = DEFENCES[name](Same()).get_submodule("before")
    x = images(shape, n=20)
    for given in (x, x.double(), x.contiguous(memory_format=torch.channels_last)):
        found = before(given)
        assert (found.shape, found.dtype) == (given.shape, given.dtype)
        assert not torch.equal(found, given) and (found - given).abs().mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", DEFENCES)
def test_only_the_randomised_change_their_answer_and_a_seed_decides_it(name: str, shape: tuple[int, ...]):
    model, x = DEFENCES[name](linear(shape)).eval(), images(shape)
    assert is_randomised(model, x) == (name in RANDOMISED)
    with seeded(3, "passes", CPU):
        first = model(x)
    with seeded(3, "passes", CPU):
        assert torch.equal(model(x), first)


def test_jpeg_is_a_file_written_and_read():
    """The twin writes through a file of its own for each image; quality 30 must be worse than 90."""
    for shape in SHAPES:
        x = images(shape)
        found = DEFENCES["jpeg"](Same(), quality=30)(x).reshape(x.shape)
        for image, back in zip(x, found, strict=True):
            levels = (image * 255).round().byte().numpy()
            file = io.BytesIO()
            planes = [Image.fromarray(level) for level in levels]
            (planes[0] if shape[0] == 1 else Image.merge("RGB", planes)).save(file, format="JPEG", quality=30)
            assert file.getvalue()[:2] == b"\xff\xd8"  # it is a JPEG
            expected = np.asarray(Image.open(file), np.float32) / 255
            np.testing.assert_allclose(back.numpy(), expected[None] if shape[0] == 1 else expected.transpose(2, 0, 1))
    x = images((3, 32, 32))
    errors = [(DEFENCES["jpeg"](Same(), quality=q)(x) - x.flatten(1)).abs().mean() for q in (30, 90)]
    assert errors[0] > errors[1]


def test_jpeg_has_no_gradient_and_gradient_attacks_say_so(net: nn.Module, test: tuple[Tensor, Tensor]):
    """As with a user's own: what needs no gradient still runs, on the defended model."""
    x, y = test[0][:40], test[1][:40]
    model = DEFENCES["jpeg"](net, quality=75)
    images = x.clone().requires_grad_()
    assert torch.autograd.grad(model(images).sum(), images, allow_unused=True) == (None,)
    with pytest.raises(ValueError, match="no gradient"):
        list(evaluate_batches(model, x, y, [("pgd", partial(ATTACKS["pgd"], eps=0.1))], eps=0.1, num_classes=10))
    square = partial(ATTACKS["square"], eps=0.3, queries=100)
    (batch,) = evaluate_batches(model, x, y, [("square", square)], eps=0.3, num_classes=10)
    with torch.no_grad():
        broken = (model(batch.x_adv).argmax(1) != y).numpy()
    assert (broken == batch.outcome.success).all() and broken.any()


def test_bit_depth_is_the_nearest_level():
    x = images((3, 20, 28))
    levels = np.linspace(0, 1, 8)
    nearest = levels[np.abs(x.numpy()[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(DEFENCES["bit_depth"](Same(), bits=3)(x).reshape(x.shape), nearest, atol=1e-6)
    eight = (x * 255).round() / 255  # what is at 8 bits already stays
    torch.testing.assert_close(DEFENCES["bit_depth"](Same(), bits=8)(eight), eight.flatten(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_median_is_scipys(size: int, shape: tuple[int, ...]):
    x = images(shape)
    found = DEFENCES["median"](Same(), size=size)(x).reshape(x.shape)
    expected = median_filter(x.numpy(), size=(1, 1, size, size), mode="mirror")
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_placing_is_resizing_and_padding(shape: tuple[int, ...]):
    """torch's own resize and pad, one image at a time."""
    x = images(shape, n=5)
    height, width = shape[1:]
    rows, columns = torch.tensor([height, height - 1, 5, 6, 7.0]), torch.tensor([width, width - 2, 6, 5, width])
    top, left = torch.tensor([0, 1, height - 5, 2, 0.0]), torch.tensor([0, 0, 1, width - 5, 0.0])
    found = place(x, rows, columns, top, left)
    for i, image in enumerate(x):
        r, c, t, p = (int(value[i]) for value in (rows, columns, top, left))
        small = F.interpolate(image[None], (r, c), mode="bilinear", align_corners=False)
        expected = F.pad(small, (p, width - p - c, t, height - t - r))[0]
        torch.testing.assert_close(found[i], expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_sizes_and_places_are_drawn_evenly():
    """Of 32 pixels from 0.9 up: 29 to 32 a side, each as often; what is left over falls on either side."""
    x = torch.ones(8000, 1, 32, 32)
    with seeded(0, "passes", CPU):
        found = ResizePad(0.9)(x)
    lit = found[:, 0] > 0.5
    rows, top = lit.any(2).sum(1), lit.any(2).float().argmax(1)
    assert torch.bincount(rows)[29:].tolist() == pytest.approx([2000] * 4, abs=200)
    assert torch.equal(rows, lit.any(1).sum(1))
    assert torch.bincount(top[rows == 30]).tolist() == pytest.approx([2000 / 3] * 3, abs=120)


def test_noise_has_its_sigma_and_is_fresh():
    model, x = DEFENCES["noise"](Same(), sigma=0.2), torch.full((100, 3, 32, 32), 0.5)
    first, second = model(x) - 0.5, model(x) - 0.5
    assert first.std().item() == pytest.approx(0.2, rel=0.01) and first.mean().item() == pytest.approx(0, abs=0.002)
    assert abs((first * second).mean().item()) < 0.04 * 0.02  # no draw knows another


def test_an_evaluation_sees_a_randomised_defence_as_such(net: nn.Module, test: tuple[Tensor, Tensor]):
    """Noise before a digit network: PGD climbs the expectation, and the accuracy is a mean over draws."""
    x, y = test[0][:60], test[1][:60]
    model = DEFENCES["noise"](net, sigma=0.2)
    attack = partial(ATTACKS["pgd"], eps=0.15, steps=10)
    batches = list(evaluate_batches(model, x, y, [("pgd", attack)], eps=0.15, draws=50, eot_draws=10, num_classes=10))
    found = join([batch.outcome for batch in batches])
    shares = found.clean_correct
    assert ((shares > 0) & (shares < 1)).any()  # some images are decided by chance
    facts = summarise(vars(found))
    assert facts["robust_accuracy"] < facts["clean_accuracy"] - 0.1 and facts["clean_accuracy"] > 0.85


def test_in_a_chain_the_first_stands_next_to_the_model():
    x = images((1, 9, 33))
    model = DEFENCES["median"](DEFENCES["bit_depth"](Same(), bits=2))
    expected = (torch.from_numpy(median_filter(x.numpy(), size=(1, 1, 3, 3), mode="mirror")) * 3).round() / 3
    torch.testing.assert_close(model(x).reshape(x.shape), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("jpeg", {"quality": 0}, "quality from 1 to 95, got 0"),
        ("bit_depth", {"bits": 9}, "bits from 1 to 8, got 9"),
        ("median", {"size": 4}, "odd size of at least 1, got 4"),
        ("resize_pad", {"smallest": 1.5}, "smallest above 0 and at most 1, got 1.5"),
        ("noise", {"sigma": 0.0}, "sigma above 0, got 0.0"),
        ("smoothing", {"sigma": float("nan")}, "sigma above 0, got nan"),
        ("smoothing", {"draws": 0}, "draws of at least 1, got 0"),
        ("dropout", {"p": 1.0}, "between 0 and 1, got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DEFENCES[name](linear((1, 8, 8)), **options)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        DEFENCES["jpeg"](Same())(torch.rand(1, 2, 8, 8))
    with pytest.raises(ValueError, match="more than 4 pixels a side"):
        DEFENCES["median"](Same(), size=9)(torch.rand(1, 1, 4, 8))
