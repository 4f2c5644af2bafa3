"""augment gives exact crops of the padded, perhaps mirrored image, each of them equally often."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from robustlib.rng import Draws
from robustlib.training.augment import augment


def unique_images(n: int, height: int, width: int) -> Tensor:
    """No pixel occurs twice in an image and none is zero, so a crop gives its place away."""
    image = torch.arange(1, 3 * height * width + 1.0).reshape(1, 3, height, width)
    return (image + torch.arange(n)[:, None, None, None] / 1000) / 1000


def place_of(out: Tensor, image: Tensor, crop: int) -> tuple[bool, int, int]:
    """The slow twin: which of all mirrored crops this is."""
    height, width = image.shape[1:]
    found = []
    for flipped in (False, True):
        padded = F.pad(image.flip(2) if flipped else image, (crop, crop, crop, crop))
        for top in range(2 * crop + 1):
            for left in range(2 * crop + 1):
                if torch.equal(out, padded[:, top : top + height, left : left + width]):
                    found.append((flipped, top, left))
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("crop, flip", [(0, True), (1, False), (2, True)])
def test_each_image_is_one_of_the_crops_and_each_crop_is_as_likely(crop: int, flip: bool):
    n = 3000
    x = unique_images(n, 4, 5)
    out = augment(x, Draws(0, torch.arange(n)), crop=crop, flip=flip)
    places = [place_of(o, image, crop) for o, image in zip(out, x, strict=True)]
    possible = [(f, t, c) for f in (False, True)[: 1 + flip] for t in range(2 * crop + 1) for c in range(2 * crop + 1)]
    counts = [places.count(place) for place in possible]
    assert sum(counts) == n and chisquare(counts).pvalue > 1e-3


def test_nothing_to_do():
    x = unique_images(5, 4, 4)
    assert torch.equal(augment(x, Draws(0, torch.arange(5)), crop=0, flip=False), x)


def test_an_image_does_not_depend_on_its_batch_nor_on_the_layout():
    x, draws = unique_images(200, 6, 5), Draws(4, torch.arange(200))
    whole = augment(x, draws, crop=2, flip=True)
    chosen = torch.tensor([3, 199, 40])
    assert torch.equal(augment(x[chosen], draws[chosen], crop=2, flip=True), whole[chosen])
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(last, draws, crop=2, flip=True), whole)
    assert not torch.equal(augment(x, Draws(5, torch.arange(200)), crop=2, flip=True), whole)
