"""Corruptions against the library called by hand, an example at a time, and the noise against its definition."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.attacks.corruptions import KINDS, OWN_SEED, SEVERITIES, corruption
from robustlib.evaluation.batches import evaluate_batches
from robustlib.metrics import summarise
from robustlib.outcome import join
from robustlib.rng import Draws

imagecorruptions = pytest.importorskip("imagecorruptions", reason="needs the extra `corruptions`")


class Never(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a corruption asks no model")


def images(shape: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures at 8 bits: corruptions of pure noise would tell little."""
    coarse = torch.rand(n, shape[0], 4, 4, generator=torch.Generator().manual_seed(2))
    x = nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True)
    return (x * 255).round() / 255, torch.zeros(n, dtype=torch.long)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_library_called_by_hand(kind: str):
    x, y = images((3, 32, 40), 2)
    draws = Draws(3, torch.tensor([11, 4]))
    state = np.random.get_state()
    for severity in (1, 5):
        found = corruption(Never(), x, y, kind=kind, severity=severity, draws=draws)
        seeds = draws.bits((1,), f"corruption/{kind}/{severity}").squeeze(1) % 2**32
        for image, back, seed in zip(x, found, seeds.tolist(), strict=True):
            levels = np.ascontiguousarray((image * 255).round().byte().numpy().transpose(1, 2, 0))
            np.random.seed(seed)
            options = {"seed": seed} if kind in OWN_SEED else {}
            expected = imagecorruptions.corrupt(levels, severity, kind, **options)
            np.testing.assert_array_equal((back * 255).round().byte().numpy().transpose(1, 2, 0), expected)
        np.random.set_state(state)
        assert not torch.equal(found, x)


def test_the_names_are_the_papers():
    assert list(KINDS) == imagecorruptions.get_corruption_names("common")
    assert SEVERITIES == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (1, 33, 48)], ids=str)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "glass_blur" else []) for kind in KINDS]
)
def test_an_examples_corruption_is_its_own(kind: str, shape: tuple[int, ...]):
    """The same alone and in any batch, another for each example, in the box, and NumPy's own generator untouched."""
    x, y = images(shape, 4)
    x = x[:1].expand(4, -1, -1, -1)  # the same image four times
    draws = Draws(0, torch.arange(4))
    np.random.seed(5)
    found = corruption(Never(), x, y, kind=kind, severity=3, draws=draws)
    after = np.random.rand()
    np.random.seed(5)
    assert after == np.random.rand()
    assert found.shape == x.shape and found.dtype == x.dtype and found.min() >= 0 and found.max() <= 1
    alone = [corruption(Never(), x[i : i + 1], y[:1], kind=kind, severity=3, draws=draws[i : i + 1]) for i in (3, 1)]
    assert torch.equal(torch.cat(alone), found[[3, 1]])
    random = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(found[0], found[1]) != random


@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_noise_has_the_papers_sigma(channels: int):
    """Of grey images too: 0.08, 0.12, 0.18, 0.26, 0.38. Rounding down and the box leave the middle of it alone."""
    x = torch.full((4, channels, 64, 64), 128 / 255)
    for severity, sigma in zip((1, 2, 3), (0.08, 0.12, 0.18), strict=True):
        noise = corruption(Never(), x, torch.zeros(4, dtype=torch.long), kind="gaussian_noise", severity=severity) - x
        assert noise.std().item() == pytest.approx(sigma, rel=0.03)


def test_severity_is_severity():
    x, y = images((3, 32, 32), 8)
    errors = [(corruption(Never(), x, y, kind="contrast", severity=s) - x).abs().mean().item() for s in SEVERITIES]
    assert errors == sorted(errors) and errors[0] < errors[-1]


class Brighter(nn.Module):
    """Class 1 where an image's mean lies above one half."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) - 0.5
        return torch.stack([-value, value], 1)


def test_robust_accuracy_is_that_on_the_corrupted_images():
    """Brightness 3 adds 0.3 to a grey image: of three dark ones labelled 0, one turns bright; of two labelled 1, both do.

    One of these was wrong as it is, and counts as right once corrupted: accuracy is what the literature means by it.
    """
    levels = torch.tensor([0.05, 0.15, 0.25, 0.3, 0.6])
    x = levels.reshape(-1, 1, 1, 1).expand(-1, 1, 32, 32).contiguous()
    y = torch.tensor([0, 0, 0, 1, 1])
    attack = partial(ATTACKS["corruption"], kind="brightness", severity=3)
    found = join([b.outcome for b in evaluate_batches(Brighter(), x, y, [("corruption", attack)], num_classes=2)])
    assert found.clean_correct.tolist() == [1, 1, 1, 0, 1]
    assert found.success.tolist() == [False, False, True, False, False]
    assert found.broken_by.tolist() == ["", "", "corruption", "", ""]
    facts = summarise(vars(found))
    assert (facts["clean_accuracy"], facts["robust_accuracy"]) == (0.8, 0.8)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 8, 8), {}, "at least 32x32 pixels, got 1 and 8x8"),
        ((2, 32, 32), {}, "1 or 3 channels and at least 32x32 pixels, got 2 and 32x32"),
        ((3, 32, 32), {"kind": "rain"}, "unknown kind 'rain', expected one of: gaussian_noise, shot_noise"),
        ((3, 32, 32), {"severity": 6}, "severity from 1 to 5, got 6"),
    ],
)
def test_what_the_library_does_not_take_is_refused(shape: tuple[int, ...], options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        corruption(Never(), torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long), **options)


def test_without_the_extra_one_line_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ValueError, match=r"^corruption needs the extra: pip install 'robustq\[corruptions\]' "):
        corruption(Never(), torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
