"""A case of wrong input, and what stands in it before anything is changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robustlib.models import build

STUDY: dict[str, Any] = {
    "name": "base",
    "dataset": "digits",
    "models": {
        "plain": {"arch": "lenet5", "train": {"objective": "pgd", "eps": 0.1, "steps": 3, "epochs": 2}},
        "mine": {"file": "m.py:make", "options": {"width": 3}, "normalize": {"mean": 0.5, "std": [0.25]}},
        "given": {
            "arch": "lenet5",
            "weights": "w.pt",
            "defence": [{"name": "bit_depth", "bits": 3}, {"name": "median"}],
        },
    },
    "attacks": [{"name": "pgd", "eps": [0.1, 0.2], "steps": 5}, {"name": "deepfool", "norm": "L2"}],
    "seeds": [0, 1],
    "examples": 10,
    "train": {"batch_size": 64},
}
MODEL = """import torch
def make(width: int, in_channels, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(width), torch.nn.Linear(width, num_classes))
"""
ATTACK = ["attack", "lenet5", "--weights", "w.pt", "--attack", "pgd", "--eps", "8/255", "--param", "steps=2"]
ATTACK += ["--examples", "20"]


@dataclass(frozen=True)
class Case:
    """A command line to be given in `folder`. what: was changed, in words.  idle: it may change nothing."""

    folder: Path
    words: list[str]
    what: str
    idle: bool = False


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))
