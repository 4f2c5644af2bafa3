"""Answers to images: what a server gives for each, and what makes them."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from robustlib.number_text import counted
from robustlib.packages.manifest import ONNX, Package
from robustlib.packages.onnx_session import OnnxSession
from robustq.jobs.packages.card import card_of

ABSTAINED = -1


@dataclass(frozen=True)
class Certificate:
    """What is certain of one image, but for a chance of alpha over all that is said here together.

    holds: of each stated radius, in L2 and units of images in [0, 1], whether the class stays within it. All are False
    where the server abstains.  votes: noisy copies that were asked.
    """

    holds: dict[float, bool]
    votes: int
    sigma: float
    alpha: float


@dataclass(frozen=True)
class Answer:
    """What one image is answered with.

    label: the class, ABSTAINED where no class is certain.  scores: a number for each class, float32, (classes,): of
    this kind.  certificate: None where nothing is certified.
    """

    label: int
    scores: np.ndarray
    kind: Literal["logits", "votes"]
    certificate: Certificate | None = None


class Engine(Protocol):
    """What answers a batch of images. One thread asks it at a time.

    image: shape of an image, (C, H, W).  classes: their names, in order.  mode: how it computes, in words.
    """

    image: tuple[int, int, int]
    classes: list[str]
    mode: str

    def answer(self, images: np.ndarray) -> list[Answer]:
        """Answers to images, float32 in [0, 1], shape (B, C, H, W)."""
        ...


class Program:
    """The package's ONNX program, as it is."""

    def __init__(self, package: Package, *, name: str = ONNX, threads: int = 1):
        self.session = OnnxSession(package.read(name), name, threads=threads)
        self.image, self.classes = shape_and_names(package)
        self.session.check_images(self.image)
        self.mode = f"{name} in ONNX Runtime, {counted(threads, 'thread')}"

    def answer(self, images: np.ndarray) -> list[Answer]:
        logits = self.session(images)
        return [Answer(int(label), row, "logits") for label, row in zip(logits.argmax(axis=1), logits, strict=True)]


def shape_and_names(package: Package) -> tuple[tuple[int, int, int], list[str]]:
    """What images a package takes, (C, H, W), and the names of its classes. Raises PackageError for a card without."""
    card = card_of(package)
    height, width = card.preprocessing.size
    return (card.preprocessing.channels, height, width), card.classes
