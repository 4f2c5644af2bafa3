"""A small network, files of its weights, and what became of loading them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlib.models.weights import load_weights

Weights = dict[str, Tensor]


def small() -> nn.Sequential:
    """A network with statistics that it learns, and a counter beside them."""
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    return nn.Sequential(*layers).eval()


def numbers(seed: int = 0) -> Weights:
    """Weights of `small`, every number of them another than a fresh network's."""
    torch.manual_seed(seed)
    own = small().state_dict()
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else torch.tensor(7) for k, v in own.items()}


def behind(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def saved(content: Any, tmp_path: Path, name: str = "w.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def same(model: nn.Module, weights: Weights) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], value.to(state[name])) for name, value in weights.items())


def took(path: Path, model: nn.Module | None = None, entry: str | None = None, **how: Any) -> tuple[nn.Module, str]:
    """The loaded model and the line that says what was taken, without the file's name."""
    model, said = model or small(), []
    load_weights(model, path, entry, tell=said.append, **how)
    assert len(said) <= 1 and all("\n" not in line for line in said)
    return model, said[0].removeprefix(f"weights {path}: ") if said else ""


def refused(path: Path, model: nn.Module | None = None, entry: str | None = None, **how: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_weights(model or small(), path, entry, **how)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


class Wrapped(nn.Module):
    """A user's network around another: with constants of its own, or with a layer that learns."""

    def __init__(self, learnt: bool = False, inner: str = "net", mean: float = 0.3):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 1, 1), 0.5))
        self.add_module(inner, small())
        if learnt:
            self.first = nn.BatchNorm2d(1, affine=False)
