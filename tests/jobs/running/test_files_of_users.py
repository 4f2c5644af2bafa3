"""What a job rests on is what it was submitted with, up to the moment in which it was read."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustlib import models
from robustlib.datasets import load
from robustlib.datasets.source import DataChanged
from robustlib.hashing import code_hash, file_hash
from robustlib.models.lenet5 import LeNet5
from robustq.jobs.running.inputs import build_network, load_data, where_there
from robustq.jobs.running.surrogates import pool
from robustq.jobs.specs import CodeRef, DataRef, FileRef, ModelSpec

MODEL = (
    "import torch\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)) # 1\n"
)


@pytest.fixture
def digits() -> load.Dataset:
    return load.load("digits", "test")


def edit(path: Path) -> None:
    """Change a file in place; size and time of the last edit stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def spec_of(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelSpec, Path]:
    """A model that rests on a user's file of this kind, and the file."""
    if kind == "weights":
        path = folder / "weights.safetensors"
        save_file(LeNet5(in_channels=1, num_classes=10, image_size=(8, 8)).state_dict(), path)
        return ModelSpec(arch="lenet5", weights=FileRef(place=str(path), sha256=file_hash(path))), path
    path = folder / f"users_{folder.name.replace('-', '_')}.py"
    path.write_text(MODEL)
    place = str(path) if kind == "file" else path.stem
    if kind == "module":
        monkeypatch.syspath_prepend(str(folder))
    digest = code_hash(path) if kind == "file" else file_hash(path)
    return ModelSpec(code=CodeRef(place=place, factory="build", sha256=digest)), path


@pytest.mark.parametrize("kind", ["weights", "file", "module"])
@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_an_edit_that_puts_back_the_time_is_noticed(kind, when, tmp_path, monkeypatch, digits):
    spec, path = spec_of(kind, tmp_path, monkeypatch)
    build_network(spec, digits, 0)  # as submitted
    if when == "before":
        edit(path)
    else:
        build = models.build

        def slow(**given):
            edit(path)
            return build(**given)

        monkeypatch.setattr(models, "build", slow)
    with pytest.raises(ValueError, match="has changed since the job was submitted: submit the study again") as error:
        build_network(spec, digits, 0)
    assert str(path) in str(error.value)
    sys.modules.pop(path.stem, None)
    importlib.invalidate_caches()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for i in range(120):
            path = tmp_path / "set" / split / f"{i % 2}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), i + (split == "train"), np.uint8)).save(path)
    return tmp_path / "set"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one is gone", "one is damaged", "the split is gone", "all are gone"])
@pytest.mark.parametrize("when", ["the test images are read", "the training split is open"])
def test_images_to_learn_from_that_went_end_the_job(how: str, when: str, pictures: Path):
    """It once learnt from other images then, without a word."""
    place = f"folder:{pictures}"
    ref = DataRef(place=place, sha256=load.fingerprint(place))
    load_data(ref)
    if when == "the training split is open":
        load_data(ref, "train")
    first = pictures / "train" / "0" / "000.png"
    if how == "one is gone":
        first.unlink()
    elif how == "one is damaged":
        first.write_bytes(first.read_bytes()[:-20])
    else:
        (pictures / ("train" if how == "the split is gone" else "")).rename(pictures.parent / "elsewhere")
    with pytest.raises((DataChanged, FileNotFoundError, ValueError)):
        pool(ref, 20)


def test_a_training_split_that_never_could_be_read_is_none(pictures: Path):
    (pictures / "train" / "0" / "000.png").write_bytes(b"no picture")
    place = f"folder:{pictures}"
    ref = DataRef(place=place, sha256=load.fingerprint(place))
    images, said = pool(ref, 20)
    assert said == "the test split, images not attacked" and len(images) == 100
    with where_there(ref):
        raise ValueError("no such split")
    assert torch.is_tensor(images)
