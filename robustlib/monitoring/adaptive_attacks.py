"""Attacks that know the signals: how often a signal is raised by who reads its code, which is all that it is worth.

Each is PGD or Square with the signal as a second goal, as Tramer et al. 2020, https://arxiv.org/abs/2002.08347, ask of
whoever proposes a detector.
"""

import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.pgd import pgd
from robustlib.inference.model_modes import strict_float32
from robustlib.losses import margin
from robustlib.model_calls import Careful, ask
from robustlib.monitoring.image_statistics import Ranges, image_statistics
from robustlib.norms import ascent_step, project_in_box
from robustlib.rng import seeded

PARTS = tuple(k / 10 for k in range(10, -1, -1))  # of the way from the original, in which the attacked image is tried
WEIGHT = 10.0  # of leaving the ranges, in widths of a range, beside the margin


class WithNoise(Careful, nn.Module):
    """The mean of the logits of images and of fresh noisy copies: what climbs it makes all of them one other class."""

    def __init__(self, model: nn.Module, sigma: float, draws: int):
        super().__init__()
        self.model, self.sigma, self.draws = model, sigma, draws

    def forward(self, x: Tensor) -> Tensor:
        copies = [x, *(x + self.sigma * torch.randn_like(x) for _ in range(self.draws))]
        return ask(self.model, torch.cat(copies)).reshape(len(copies), len(x), -1).mean(0)


def agreeing_under_noise(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    sigma: float,
    steps: int = 20,
    draws: int = 4,
    seed: int = 0,
) -> Tensor:
    """PGD on the expectation over noise (Athalye et al. 2018, https://arxiv.org/abs/1802.00420), the images among its
    copies: the margin of another class over y rises for all of them at once, so that the votes agree with the image.

    sigma: of the noise that votes are made under.  draws: noisy copies in a step. Returns x_adv, shaped like x.
    """
    with strict_float32(), seeded(seed, "monitoring/noise", x.device):
        return pgd(WithNoise(model, sigma, draws), x, y, norm=norm, eps=eps, steps=steps, loss="margin").detach()


def staying_in_range(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    ranges: Ranges,
    steps: int = 20,
) -> Tensor:
    """PGD that is charged for each statistic outside its range; then drawn back towards x as far as the ranges ask.

    Of the points on the way back it takes the farthest that is misclassified and in range, else the farthest in range.
    Returns x_adv, shaped like x: x itself where all others are outside.
    """
    step_size, x_adv = 2.5 * eps / steps, x
    with strict_float32():
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            gain = margin(ask(model, x_adv), y) - WEIGHT * excess(x_adv, ranges)
            (gradient,) = torch.autograd.grad(gain.sum(), x_adv)
            moved = x_adv.detach() + ascent_step(x_adv.detach(), gradient, step_size, norm)
            x_adv = (x + project_in_box(x, moved - x, eps, norm)).clamp(0, 1)
        return drawn_back(model, x, y, x_adv, ranges)


@torch.no_grad()
def drawn_back(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, ranges: Ranges) -> Tensor:
    found, best = x.clone(), torch.zeros_like(y)  # 0: outside, 1: in range, 2: and misclassified
    for part in PARTS:
        here = x + part * (x_adv - x)
        worth = torch.where(excess(here, ranges) > 0, 0, 1 + (ask(model, here).argmax(1) != y).long())
        better = worth > best
        found[better], best = here[better], torch.where(better, worth, best)
    return found


def excess(x: Tensor, ranges: Ranges) -> Tensor:
    """How far the statistics of each image lie outside their ranges, in widths of these, summed, shape (B,)."""
    found, total = image_statistics(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for name, (low, high) in ranges.items():
        value, width = found[name], max(high - low, 1e-12)
        total = total + ((value - high).clamp_min(0) + (low - value).clamp_min(0)) / width
    return total


class Disguised(Careful, nn.Module):
    """A model that an attacker asks about images that are shifted, brightened and noised anew each time, so that no two
    queries look alike; the answer is that of the changed image.

    shift: pixels, at most, each way.  noise: its standard deviation.  light: of contrast and brightness, at most.
    """

    def __init__(self, model: nn.Module, *, shift: int, noise: float = 0.03, light: float = 0.15):
        super().__init__()
        self.model, self.shift, self.noise, self.light = model, shift, noise, light

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):
            return ask(self.model, x)
        way = torch.randint(-self.shift, self.shift + 1, (len(x), 2)).tolist()
        moved = torch.stack([image.roll((down, right), (1, 2)) for image, (down, right) in zip(x, way, strict=True)])
        contrast, brightness = self.light * (2 * torch.rand(2, len(x), 1, 1, 1, device=x.device) - 1)
        noisy = moved * (1 + contrast) + brightness + self.noise * torch.randn_like(x)
        return ask(self.model, noisy.clamp(0, 1))
