"""A package in memory: the same after a pickle, whatever becomes of its files."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from robustlib.packages.contents import PackageError
from robustlib.packages.in_memory import in_memory
from robustlib.packages.manifest import CARD, open_package
from tests.robustlib.packages.test_contents import CARD_OF_ONE, folder, whole


def test_it_is_the_same_when_its_files_are_gone(tmp_path: Path):
    place = folder(tmp_path / "net", whole())
    there = open_package(place)
    taken = pickle.loads(pickle.dumps(in_memory(there)))
    shutil.rmtree(place)
    assert (taken.digest, taken.card, taken.read("model.onnx")) == (there.digest, CARD_OF_ONE, b"abc")
    with pytest.raises(PackageError, match=r"net: the card names no other$"):
        taken.read("other")


def test_what_may_unpickle_is_not_taken_along(tmp_path: Path):
    files = CARD_OF_ONE["files"] | {"model.pt2": CARD_OF_ONE["files"]["model.onnx"]}
    place = folder(tmp_path / "net", whole(CARD_OF_ONE | {"files": files}, **{"model.pt2": b"abc"}))
    taken = in_memory(open_package(place))
    assert json.loads(taken.card_bytes)["files"] == files and taken.read("model.onnx") == b"abc"
    with pytest.raises(PackageError, match=r"net was taken along without its file model.pt2$"):
        taken.read("model.pt2")


@pytest.mark.parametrize("files", [{"model.onnx": b"abd"}, {"more": b""}])
def test_a_package_that_is_not_its_cards_is_not_taken(files: dict[str, bytes], tmp_path: Path):
    place = folder(tmp_path / "net", whole(**files))
    assert (place / CARD).exists()
    with pytest.raises(PackageError, match=r"net is not what its card says: "):
        in_memory(open_package(place))
