"""Weights from files, of which nothing is ever executed, and models from a user's own factory."""

import os
import re
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from robustlib.models import build, network
from robustlib.models.checkpoints import read_weights

FACTS = {"in_channels": 1, "num_classes": 3, "image_size": (8, 8)}


@pytest.fixture
def bare() -> dict[str, Tensor]:
    """The weights of a lenet5 without the first layer."""
    return {key: torch.randn_like(value) for key, value in network("lenet5", **FACTS).state_dict().items()}


def save(weights: dict[str, Tensor], path: Path, wrap: bool = False) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if wrap else weights, path)
    return path


def loaded(path: Path, **more) -> nn.Module:
    return build(arch="lenet5", weights=path, **FACTS, **more)


@pytest.mark.parametrize("name, wrap", [("w.safetensors", False), ("w.pt", False), ("w.pth", True)])
def test_weights_round_trip(name: str, wrap: bool, bare: dict[str, Tensor], tmp_path: Path):
    model = loaded(save(bare, tmp_path / name, wrap), normalize=([0.25], [0.5]))
    state = model.state_dict()
    assert all(torch.equal(state[f"net.{key}"], value) for key, value in bare.items())
    assert state["normalize.mean"].item() == 0.25 and not model.training


def test_weights_that_carry_the_first_layer_decide_it(bare: dict[str, Tensor], tmp_path: Path):
    whole = {f"net.{key}": value for key, value in bare.items()}
    whole |= {"normalize.mean": torch.full((1, 1, 1), 0.4), "normalize.std": torch.full((1, 1, 1), 3.0)}
    state = loaded(save(whole, tmp_path / "w.safetensors"), normalize=([0.25], [0.5])).state_dict()
    assert state.keys() == whole.keys() and all(torch.equal(state[key], whole[key]) for key in whole)


def test_half_precision_weights_become_float32(bare: dict[str, Tensor], tmp_path: Path):
    halves = {key: value.half() for key, value in bare.items()}
    state = loaded(save(halves, tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(state[f"net.{key}"], value.float()) for key, value in halves.items())
    assert {value.dtype for value in state.values()} == {torch.float32}


class Payload:
    """Unpickling this makes a folder: whoever loads it has run code."""

    def __init__(self, place: Path):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_a_pickle_with_code_is_refused_and_never_run(bare: dict[str, Tensor], tmp_path: Path):
    trap, path = tmp_path / "executed", tmp_path / "w.pt"
    torch.save({**bare, "extra": Payload(trap)}, path)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))} holds posix\.mkdir beside its tensors, which may run"
    ):
        read_weights(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the proof that the trap is one
    assert trap.exists()


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=rf"^no weights file {re.escape(str(tmp_path / 'w.pt'))}$"):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: [w.pop("fc3.bias"), w.pop("conv1.bias")],
            "2 tensors missing, first 'net.conv1.bias', 'net.fc3.bias'",
        ),
        (
            lambda w: w.update(zz=torch.zeros(1), aux=torch.zeros(1)),
            "2 tensors too many, first 'aux', 'zz', which may change what it computes",
        ),
        (
            lambda w: w.update({"fc3.weight": torch.zeros(10, 84)}),
            "'fc3.weight' has shape (10, 84), the model expects (3, 84)",
        ),
        (
            lambda w: [w.pop("fc3.bias"), w.update(aux=torch.zeros(1))],
            "1 tensor missing, first 'net.fc3.bias'; 1 tensor too many, first 'aux'",
        ),
    ],
    ids=["missing", "too many", "shape", "missing and too many"],
)
def test_misfits(change, message: str, bare: dict[str, Tensor], tmp_path: Path):
    change(bare)
    path = save(bare, tmp_path / "w.safetensors")
    with pytest.raises(ValueError) as error:
        loaded(path)
    assert str(error.value) == f"weights {path} do not fit the model: {message}"


FACTORY = """
from collections import OrderedDict
from torch import nn
from neighbour_of_the_factory import UNITS

def small(num_classes, image_size, width=UNITS):
    pixels = image_size[0] * image_size[1]
    hidden, out = nn.Linear(pixels, width), nn.Linear(width, num_classes)
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), hidden=hidden, out=out))

def wrong():
    return "a model"

constant = 3
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "my_model.py").write_text(FACTORY)
    (tmp_path / "neighbour_of_the_factory.py").write_text("UNITS = 5\n")
    return str(tmp_path / "my_model.py")


def test_a_factory_gets_the_facts_it_asks_for_and_its_options(factory: str, tmp_path: Path):
    model = build(file=f"{factory}:small", **FACTS)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        "hidden.weight": (5, 64),
        "hidden.bias": (5,),
        "out.weight": (3, 5),
        "out.bias": (3,),
    }
    assert not model.training  # and no first layer of ours in front
    wide = build(file=f"{factory}:small", options={"width": 9}, **FACTS)
    path = save({key: torch.randn_like(value) for key, value in wide.state_dict().items()}, tmp_path / "w.safetensors")
    again = build(file=f"{factory}:small", options={"width": 9}, weights=path, **FACTS)
    expected = safetensors.torch.load_file(path)
    assert all(torch.equal(value, expected[key]) for key, value in again.state_dict().items())


def test_a_factory_from_a_package():
    model = build(file="torch.nn:Flatten", **FACTS)
    assert isinstance(model, nn.Flatten)


@pytest.mark.parametrize(
    "reference, error, message",
    [
        ("{}:nothing", ValueError, r"my_model\.py has no function 'nothing' that builds a model$"),
        ("{}:constant", ValueError, r"my_model\.py has no function 'constant' that builds a model$"),
        ("{}:wrong", ValueError, r"my_model\.py:wrong returned str, expected a torch\.nn\.Module or a callable$"),
        ("{}", ValueError, r"^expected a model as FILE\.py:factory or package\.module:factory, got "),
        ("{}:", ValueError, r"^expected a model as FILE\.py:factory or package\.module:factory, got "),
        ("{}x.py:small", FileNotFoundError, r"^no model file .*my_model\.pyx\.py$"),
    ],
)
def test_factories_that_do_not_exist_or_build_no_model(reference: str, error, message: str, factory: str):
    with pytest.raises(error, match=message):
        build(file=reference.format(factory), **FACTS)


def test_a_model_of_the_users_own_may_have_a_part_named_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only together with a part named normalize does `net` mean our own layout."""
    inner = nn.Sequential(OrderedDict(net=nn.Linear(2, 3), head=nn.Linear(3, 3)))
    monkeypatch.setattr("robustlib.models.build_users", lambda *_, **__: inner)
    weights = {key: torch.randn_like(value) for key, value in inner.state_dict().items()}
    model = build(file="my_model.py:small", weights=save(weights, tmp_path / "w.pt"), **FACTS)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_options_that_nobody_takes_are_refused(tmp_path: Path):
    path = tmp_path / "optional.py"
    path.write_text(
        "import torch\n"
        "def build(num_classes, width=3): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, num_classes))\n"
        "def any_of(**options): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, options['out']))\n"
    )
    known = {"in_channels": 1, "num_classes": 5, "image_size": (8, 8)}
    assert build(file=f"{path}:build", options={"width": 4}, **known)[1].weight.shape == (5, 4)  # pyright: ignore[reportIndexIssue]
    assert build(file=f"{path}:any_of", options={"out": 5}, **known)[1].weight.shape == (5, 7)  # pyright: ignore[reportIndexIssue]
    with pytest.raises(
        ValueError,
        match=r"optional\.py:build has no option 'widht', it has: num_classes, width: did you mean 'width'\?$",
    ):
        build(file=f"{path}:build", options={"widht": 4}, **known)
    with pytest.raises(
        ValueError, match=r"^lenet5 has no option 'depth', it has: in_channels, num_classes, image_size"
    ):
        build(arch="lenet5", options={"depth": 4}, **known)
