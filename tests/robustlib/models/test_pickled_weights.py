"""Pickled weights: plain data beside them is passed over, nothing in a file runs, and any content is loaded or one line."""

import argparse
import collections
import datetime
import pathlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from robustlib.models.checkpoints import read_weights
from robustlib.models.weights import load_weights
from tests.helpers.small_weights import behind, numbers, same, saved, small, took

BESIDE = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1")),
    "acc": np.float64(0.9),
    "history": np.arange(3),
    "when": datetime.datetime(2024, 1, 2),
    "log": collections.defaultdict(list, {"loss": [1.0]}),
    "last": collections.deque([1, 2], maxlen=5),
    "counts": collections.Counter("abc"),
    "rng": (torch.get_rng_state(), np.random.get_state()),
}


@pytest.mark.slow
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("newer", [True, False])
def test_plain_data_beside_the_tensors(beside: str, newer: bool, tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": numbers(), beside: BESIDE[beside]}, path, _use_new_zipfile_serialization=newer)
    assert same(took(path)[0], numbers())


def test_stand_ins_run_nothing_and_leave_no_trace(tmp_path: Path):
    """What stands for a class of plain data is none, and torch.load elsewhere is as it was."""
    path = saved({"state_dict": numbers(), "args": argparse.Namespace(lr=1)}, tmp_path)
    before = set(torch.serialization.get_safe_globals())
    read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


class Trap:
    """Calls a function that is let in by name with arguments of an attacker's choice."""

    def __init__(self, called: Any, *args: Any):
        self.called, self.args = called, args

    def __reduce__(self) -> Any:
        return self.called, self.args


def test_a_name_that_is_let_in_is_not_called(tmp_path: Path):
    """`getattr` stands among plain data in some checkpoints: here it would find a way to anything."""
    path = saved({"state_dict": numbers(), "x": Trap(getattr, pathlib.Path, "home")}, tmp_path)
    assert torch.load(path, weights_only=False)["x"] == pathlib.Path.home
    assert list(read_weights(path)) == ["state_dict"]


def test_a_file_decides_no_method_of_what_it_holds(tmp_path: Path):
    """Torch lets it set attributes of an OrderedDict and of a parameter, of whatever name."""

    class Named(collections.OrderedDict[str, Any]):
        def __reduce__(self) -> Any:
            return collections.OrderedDict, (), {"items": argparse.Namespace}, None, iter([("0.weight", value)])

    value = nn.Parameter(torch.ones(2))
    value.numel = value.detach = argparse.Namespace  # pyright: ignore[reportAttributeAccessIssue]
    (weights,) = read_weights(saved(Named(), tmp_path)).values()
    assert weights["0.weight"].numel() == 2 and not vars(weights["0.weight"])


NAMES = st.sampled_from(
    ["0.weight", "1.running_mean", "4.bias", "state_dict", "model.0.weight", "mean", "std", "", "."]
)
LEAVES = st.one_of(
    st.none(), st.integers(), st.text(max_size=3), st.builds(torch.zeros, st.integers(0, 3)),
    st.builds(lambda n: torch.zeros(n, dtype=torch.int8), st.integers(0, 2)),
)  # fmt: skip
CONTENT = st.recursive(
    LEAVES, lambda inner: st.dictionaries(NAMES | st.integers(), inner, max_size=4) | st.lists(inner, max_size=2), max_leaves=8
)  # fmt: skip


def loads_or_one_line(path: Path) -> None:
    model, before = small(), {name: value.clone() for name, value in small().state_dict().items()}
    model.load_state_dict(before)
    try:
        load_weights(model, path)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # all or nothing


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, whole=st.booleans(), prefix=st.sampled_from(["", "module.", "model.", "a.b."]))
def test_any_content(content: Any, whole: bool, prefix: str, tmp_path: Path):
    mixed = behind(prefix, numbers()) | content if whole and isinstance(content, dict) else content
    loads_or_one_line(saved(mixed, tmp_path))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["zip", "older", "safetensors"]))
def test_files_with_bytes_changed_or_cut(data: st.DataObject, kind: str, tmp_path: Path):
    path = tmp_path / "w.pt"
    if kind == "safetensors":
        safetensors.torch.save_file(numbers(), path)
    else:
        torch.save(
            {"state_dict": numbers(), "args": argparse.Namespace(a=1)},
            path,
            _use_new_zipfile_serialization=kind == "zip",
        )
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, min(len(raw), 3000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    loads_or_one_line(path)
