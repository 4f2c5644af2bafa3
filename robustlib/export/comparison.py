"""A program beside the network that it was made from: logits and classes on the same images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.inference.model_modes import as_images, evaluating, strict_float32
from robustlib.model_calls import ask
from robustlib.packages.onnx_session import OnnxSession

BATCH = 64
# Sums of float32 in another order differ by some 1e-7 to 1e-5 of the largest logit; a normalisation that was lost, a
# weight that was changed or bits that were dropped by 1e-3 of it and more.
TOLERANCE = 1e-4
# What an accuracy may lose: what the check `square-beats-gradients` calls a failure.
ACCURACY_LOSS = 0.02


@dataclass(frozen=True)
class Compared:
    """A program and its network on the same images.

    network, program: logits, float32, shape (N, classes).  difference: the largest of a logit.
    """

    network: np.ndarray
    program: np.ndarray

    @property
    def difference(self) -> float:
        return largest_difference(self.network, self.program)

    @property
    def differing(self) -> np.ndarray:
        """Rows to which the two give different classes."""
        return np.flatnonzero(self.network.argmax(1) != self.program.argmax(1))


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays' numbers; infinite where one has a number and the other has none."""
    if a.shape != b.shape:
        return float("inf")
    gap = np.abs(a.astype(np.float64) - b)
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def tolerance(logits: np.ndarray) -> float:
    """How far a program's logits may lie from these, float32, shape (N, classes)."""
    return TOLERANCE * max(float(np.abs(logits).max(initial=0.0)), 1e-6)


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the largest logit of each row is above the next."""
    top = np.sort(logits, axis=1)
    return top[:, -1] - top[:, -2] if logits.shape[1] > 1 else np.full(len(logits), np.inf)


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> np.ndarray:
    """The model's logits in strict float32, shape (N, classes). x: images, uint8 or floats in [0, 1]."""
    found = []
    with evaluating(model), strict_float32():
        for part in x.split(BATCH):
            found.append(ask(model, as_images(part, torch.device("cpu"))).float().cpu().numpy())
    return np.concatenate(found)


def program_logits(program: OnnxSession, x: Tensor) -> np.ndarray:
    """A program's rows for the same images."""
    device = torch.device("cpu")
    return np.concatenate([program(as_images(part, device).numpy()) for part in x.split(BATCH)])


def compare(model: nn.Module, program: OnnxSession, x: Tensor) -> Compared:
    """The model and a program on the same images, uint8 or floats in [0, 1], shape (N, C, H, W)."""
    return Compared(logits_of(model, x), program_logits(program, x))


def accuracy_lost(network: float, program: float, n: int) -> float:
    """How far a program's accuracy lies below its network's, where that is more than one image of n: one is chance."""
    lost = network - program
    return lost if round(lost * n) > 1 else 0.0
