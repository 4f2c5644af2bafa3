"""Natural changes of images: the corruptions of Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261.

They are those of the package imagecorruptions-imaug, the extra `corruptions`: a maintained fork of imagecorruptions
(Michaelis et al. 2019, https://arxiv.org/abs/1907.07484), with the same parameters.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.input_checks import checked
from robustlib.names import unknown
from robustlib.rng import Draws, default_draws

KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32  # pixels a side that the library takes
# Corruptions that do not draw from NumPy's global generator, but from one of their own.
OWN_SEED = frozenset({"impulse_noise", "glass_blur"})
GLOBAL_GENERATOR = threading.Lock()  # the others do, and threads corrupt side by side


@checked
def corruption(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    kind: str = "gaussian_noise",
    severity: int = 3,
    draws: Draws | None = None,
) -> Tensor:
    """One of 15 natural corruptions, Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261.

    x: images in [0, 1] of at least 32 pixels a side, shape (B, C, H, W) with 1 or 3 channels.  kind: one of KINDS.
    severity: 1 to 5.  The model is not asked. Images are rounded to 8 bits before and after, as the library does.
    Raises ValueError for images or arguments that the library does not take, and where it is not installed.
    """
    check(kind, tuple(x.shape[1:]))
    corrupt = library()
    seeds = default_draws(x, draws).bits((1,), f"corruption/{kind}/{severity}").squeeze(1) % 2**32
    levels = (x * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    pairs = zip(levels, seeds.tolist(), strict=True)
    found = [corrupt_one(corrupt, image, kind, severity, seed) for image, seed in pairs]
    if not found:
        return x
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(x.device, x.dtype).contiguous() / 255


def corrupt_one(corrupt: Callable[..., Any], image: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """An image corrupted, uint8, shape (H, W, C). Leaves NumPy's global generator as it was."""
    options = {"seed": seed} if kind in OWN_SEED else {}
    with GLOBAL_GENERATOR:
        before = np.random.get_state()
        np.random.seed(seed)
        try:
            found = corrupt(image, severity=severity, corruption_name=kind, **options)
        finally:
            np.random.set_state(before)
    # The library makes three channels of one. Noise is drawn for each of them: a mean would weaken it.
    return found if image.shape[2] == 3 else found[..., 1:2]


def check(kind: str, shape: tuple[int, ...]) -> None:
    if kind not in KINDS:
        raise ValueError(f"corruption: {unknown('kind', kind, KINDS)}")
    channels, height, width = shape
    if channels not in (1, 3) or min(height, width) < SMALLEST:
        raise ValueError(
            f"corruption expects images with 1 or 3 channels and at least {SMALLEST}x{SMALLEST} pixels, "
            f"got {channels} and {height}x{width}"
        )


def library() -> Callable[..., Any]:
    """The library's function. Raises ValueError where the extra is not installed."""
    # Imported here: it brings OpenCV and Numba along, and is an extra.
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise ValueError(f"corruption needs the extra: pip install 'robustq[corruptions]' ({error})") from error
    return corrupt
