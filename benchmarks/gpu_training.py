"""Timings of training on a GPU, beside the loop that people write: `python benchmarks/gpu.py training`.

Small: one network, standard training and training on PGD.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_figures import OURS, Figure, Step
from torch import Tensor, nn

from robustlib.datasets import load
from robustlib.inference.throughput import wait
from robustlib.models import build
from robustlib.rng import seeded
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

PART = "training"


@dataclass(frozen=True)
class Lesson:
    """What is trained on what. eps, steps: of PGD.  epochs: the last one's seconds count, the first one warms up."""

    arch: str
    data: load.Dataset
    examples: int
    device: torch.device
    eps: float
    steps: int
    batch_size: int = 128
    epochs: int = 2

    def model(self) -> nn.Module:
        facts: dict[str, Any] = {"in_channels": self.data.in_channels, "num_classes": self.data.num_classes}
        with seeded(0, "weights", torch.device("cpu")):
            model = build(
                arch=self.arch, image_size=self.data.image_size, normalize=(self.data.mean, self.data.std), **facts
            )
        return model.to(self.device)

    def images(self) -> tuple[Tensor, Tensor]:
        """As uint8, on the host; a tenth more than are trained on, which are held out."""
        n = -(-self.examples * 10 // 9)
        return torch.from_numpy(self.data.x[:n]), torch.from_numpy(self.data.y[:n])


def steps(lesson: Lesson) -> list[Step]:
    found: list[Step] = []
    for objective in ("standard", "pgd"):
        peer = "plain loop" if objective == "standard" else "torchattacks"
        found.append((f"{objective} training", OURS, partial(ours, lesson, objective)))
        found.append((f"{objective} training", peer, partial(plain_loop, lesson, objective, peer)))
    return found


def ours(lesson: Lesson, objective: str) -> Iterator[Figure]:
    """By `fit`, with a validation of 64 images each epoch in it."""
    x, y = lesson.images()
    attack: dict[str, Any] = {} if objective == "standard" else {"eps": lesson.eps, "steps": lesson.steps}
    settings = TrainSettings(
        objective=objective, attack=attack, epochs=lesson.epochs, batch_size=lesson.batch_size,
        examples=min(lesson.examples, len(x) - max(1, round(0.1 * len(x)))), validation_examples=64, validation_steps=1,
    )  # fmt: skip
    (*_, last) = fit(lesson.model(), x, y, settings, seed=0, device=lesson.device)
    wait()
    epoch = last.history[-1]
    note = f"{settings.examples} images an epoch, loss {epoch.loss:.3f}"
    yield Figure(PART, f"{objective} training", OURS, epoch.seconds, "s", note=note, mode=epoch.search)


def plain_loop(lesson: Lesson, objective: str, library: str) -> Iterator[Figure]:
    """Images on the device, SGD with momentum, float32 at PyTorch's defaults."""
    model, (x, y) = lesson.model(), lesson.images()
    x, y = x[: lesson.examples].to(lesson.device).float() / 255, y[: lesson.examples].to(lesson.device)
    attack = None
    if objective == "pgd":
        import torchattacks

        attack = torchattacks.PGD(model, eps=lesson.eps, alpha=2.5 * lesson.eps / lesson.steps, steps=lesson.steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    seconds, loss = 0.0, torch.zeros(())
    for _ in range(lesson.epochs):
        wait()
        start = time.perf_counter()
        for chosen in torch.randperm(len(x), device=lesson.device).split(lesson.batch_size):
            images, labels = x[chosen], y[chosen]
            images = images if attack is None else attack(images, labels)
            model.train()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        wait()
        seconds = time.perf_counter() - start
    note = f"{len(x)} images an epoch, last loss {loss.item():.3f}"
    yield Figure(PART, f"{objective} training", library, seconds, "s", note=note)
