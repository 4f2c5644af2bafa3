"""Square's queries, image by image, as a server would see them: plain, and disguised by who knows the signal."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks.square import square
from robustlib.inference.expectation import Expectation
from robustlib.model_calls import Careful, ask
from robustlib.monitoring.adaptive_attacks import Disguised
from robustlib.monitoring.query_windows import tiny_pictures
from robustlib.rng import Draws, seeded

SHIFT = 16  # of an image's side, a part of which a disguise may shift it by each way


class Recorded(Careful, nn.Module):
    """A model that keeps what it is asked, as tiny pictures."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.asked: list[np.ndarray] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(tiny_pictures(x.detach().cpu().numpy()))
        return ask(self.model, x)


@dataclass(frozen=True)
class Queried:
    """What an attack without gradients asked, and what came of it.

    pictures: of each image's queries in their order, the last of which is x_adv itself, (queries, areas) each.
    fooled: whether x_adv is misclassified, (N,).
    """

    pictures: list[np.ndarray]
    fooled: np.ndarray


@torch.no_grad()
def query_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm,
    eps: float,
    queries: int,
    seed: int = 0,
    disguised: bool = False,
) -> Queried:
    """Square on one image after the other, each as a client of its own.

    queries: of each image.  disguised: each is shown shifted, brightened and noised anew, so that the attack follows
    answers to other images than its own.
    """
    pictures, fooled = [], []
    for i in range(len(x)):
        recorded = Recorded(model)
        shift = max(1, min(x.shape[2:]) // SHIFT)
        # One lucky disguise is no success: the attack goes on to its last query.
        asked = Expectation(Disguised(recorded, shift=shift), 1) if disguised else recorded
        own = Draws(seed, torch.tensor([i], device=x.device))
        with seeded(seed, f"monitoring/queries/{i}", x.device):
            x_adv = square(asked, x[i : i + 1], y[i : i + 1], norm=norm, eps=eps, queries=queries, draws=own)
        fooled.append(bool(recorded(x_adv).argmax(1) != y[i : i + 1]))
        pictures.append(np.concatenate(recorded.asked))
    return Queried(pictures, np.array(fooled, bool))
