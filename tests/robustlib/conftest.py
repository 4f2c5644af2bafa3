"""Fixtures of several tests: the digits, a network trained on them, and a cache folder that is not the user's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlib.datasets import load
from robustlib.models import build
from robustlib.rng import seeded
from robustlib.settings import TrainSettings
from robustlib.training.loop import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robustq")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, session_home: Path) -> Path:
    monkeypatch.setenv("ROBUSTQ_HOME", str(session_home))
    monkeypatch.delenv("ROBUSTQ_DATA", raising=False)
    return session_home


@pytest.fixture(scope="session")
def digits(session_home: Path) -> dict[str, load.Dataset]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTQ_HOME", str(session_home))
        return {split: load.load("digits", split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def train(digits: dict[str, load.Dataset]) -> tuple[Tensor, Tensor]:
    """The 1,348 training images as uint8, and their classes."""
    return torch.from_numpy(digits["train"].x), torch.from_numpy(digits["train"].y)


@pytest.fixture(scope="session")
def test(digits: dict[str, load.Dataset]) -> tuple[Tensor, Tensor]:
    """The 449 test images as floats in [0, 1], and their classes."""
    return torch.from_numpy(digits["test"].x).float() / 255, torch.from_numpy(digits["test"].y)


@pytest.fixture(scope="session")
def net(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], digits: dict[str, load.Dataset]) -> nn.Module:
    """A convnet3 of about 98 % accuracy on the digits, in eval mode. Shared: leave it as it is."""
    facts = digits["train"]
    with seeded(0, "weights", CPU):
        model = build(
            arch="convnet3", in_channels=1, num_classes=10, image_size=(8, 8), normalize=(facts.mean, facts.std)
        )
    settings = TrainSettings(epochs=8, learning_rate=0.05, validation_steps=1, validation_examples=50)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # last bits of a training depend on it, and tests before this one may have set it
        for _ in fit(model, *train, settings, seed=0, device=CPU):
            pass
    finally:
        torch.set_num_threads(threads)
    model.eval().zero_grad()  # training leaves gradients behind
    with torch.no_grad():
        accuracy = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    assert accuracy > 0.95
    return model
