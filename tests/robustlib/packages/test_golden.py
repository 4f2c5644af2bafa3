"""Golden images: they come back as they were, and nothing but arrays of numbers is read."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlib.packages.contents import PackageError
from robustlib.packages.golden import Golden, as_floats, golden_bytes, read_golden

GOLDEN = Golden(
    np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4),
    np.array([1, 0]),
    np.array([5, 9]),
    {"model.onnx": np.array([[0.1, 2.0], [3.0, -1e-8]], np.float32)},
)


def test_they_come_back_as_they_were():
    data = golden_bytes(GOLDEN)
    found = read_golden(data)
    for name, array in vars(GOLDEN).items():
        if name != "logits":
            assert np.array_equal(getattr(found, name), array) and getattr(found, name).dtype == array.dtype
    assert found.logits.keys() == {"model.onnx"} and np.array_equal(
        found.logits["model.onnx"], GOLDEN.logits["model.onnx"]
    )
    assert golden_bytes(found) == data
    assert np.array_equal(as_floats(np.array([0, 51, 255], np.uint8)), np.array([0, 0.2, 1], np.float32))


class Runs:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def arrays(**other: Any) -> dict[str, Any]:
    return {"images": GOLDEN.images, "labels": GOLDEN.labels, "index": GOLDEN.index, **GOLDEN.logits} | other


def test_a_pickle_in_them_does_not_run(tmp_path: Path):
    bomb = np.array([Runs(tmp_path / "ran")] * 2, dtype=object)
    with pytest.raises(PackageError, match="is no archive of arrays"):
        read_golden(npz(**arrays(labels=bomb)))
    with pytest.raises(PackageError, match="is no archive of arrays"):
        read_golden(npz(**arrays(more=bomb)))
    assert not (tmp_path / "ran").exists()


def packed() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays())
    return file.getvalue()


def other_file() -> bytes:
    file = io.BytesIO(golden_bytes(GOLDEN))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("note.txt", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"no archive", "golden.npz is no archive of arrays"),
        (packed(), "expected arrays as they are, got packed ones"),
        (other_file(), "expected note.txt as float32 with 2 axes"),
        (npz(images=GOLDEN.images), "has no index, labels"),
        (npz(**arrays(images=GOLDEN.images.astype(np.float32))), "expected images as uint8 with 4 axes"),
        (npz(**arrays(labels=GOLDEN.labels[:1])), r"expected as many of each array, got \[2, 1, 2, 2\]"),
        (npz(**arrays(more=np.zeros((2, 2)))), "expected more as float32 with 2 axes"),
    ],
)
def test_what_is_no_such_archive_is_refused(data: bytes, line: str):
    with pytest.raises(PackageError, match=line):
        read_golden(data)


@pytest.mark.parametrize(
    "header", ["{'descr': ('", "'''", "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 30 + ",)}"]
)
def test_a_header_that_is_none_is_refused(header: str):
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(PackageError, match="is no archive of arrays"):
        read_golden(file.getvalue())
