"""A network of our own trained on a model's answers: attacks on it need nothing of the model but these."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.inference.predict import classes_of
from robustlib.model_calls import ask
from robustlib.models import network
from robustlib.rng import generator, seeded

ARCH = "convnet3"
EPOCHS, BATCH, MOST = 12, 64, 2000


def train_surrogate(model: nn.Module, pool: Tensor, classes: int, *, seed: int = 0) -> nn.Module:
    """A ConvNet that answers as the model does, in eval mode: Papernot et al. 2017, https://arxiv.org/abs/1602.02697.

    pool: images in [0, 1], whose classes are not needed; the first 2,000 are used.
    """
    pool = pool[:MOST]
    answers = answers_of(model, pool)
    with seeded(seed, "audit/surrogate", pool.device), torch.enable_grad():
        net = network(ARCH, pool.shape[1], classes, (pool.shape[2], pool.shape[3])).to(pool.device).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        order = generator(seed, "audit/surrogate")
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(pool), generator=order).split(BATCH):
                if len(rows) < 2:  # BatchNorm needs two
                    continue
                rows = rows.to(pool.device)
                # Noise of a few pixel values: answers near the images are wanted, not only on them.
                images = (pool[rows] + 0.02 * torch.randn_like(pool[rows])).clamp(0, 1)
                loss = F.cross_entropy(net(images), answers[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval()


@torch.no_grad()
def answers_of(model: nn.Module, pool: Tensor) -> Tensor:
    return torch.cat([classes_of(ask(model, part)) for part in pool.split(256)])
