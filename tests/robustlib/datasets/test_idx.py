"""Files of the MNIST family whose labels have holes, and whose headers promise what is not there."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from robustlib.datasets import load
from robustlib.datasets.readers import read_idx
from robustlib.datasets.source import AS_IT_IS, Reading

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 7), dtype=np.uint8)
REMAP = Reading(classes="remap")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROBUSTQ_HOME", str(tmp_path / "home"))


def whole(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, train: list[int], test: list[int]) -> Path:
    folder.mkdir(exist_ok=True)
    for prefix, labels in (("train", train), ("t10k", test)):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(whole(IMAGES))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(whole(np.array(labels, np.uint8))))
    return folder


@pytest.mark.parametrize(
    "train, test, told",
    [
        ([1, 2, 3, 4], [1, 1, 2, 3], "labels from 1 to 4, 4 different ones: expected 0 to 3 without holes"),  # EMNIST letters
        ([0, 1, 5, 9], [0, 1, 5, 5], "labels from 0 to 9, 4 different ones: expected 0 to 3 without holes"),
        ([0, 1, 1, 0], [7, 0, 1, 7], "labels from 0 to 7, 3 different ones: expected 0 to 2 without holes"),
        ([255, 0, 1, 0], [0, 1, 0, 1], "labels from 0 to 255, 3 different ones: expected 0 to 2 without holes"),
    ],
    ids=["from 1", "few of ten", "one in test alone", "255 for none"],
)  # fmt: skip
def test_labels_with_holes_are_refused_or_numbered_anew(train: list[int], test: list[int], told: str, tmp_path: Path):
    place = write(tmp_path / "set", train, test)
    with pytest.raises(ValueError) as error:
        load.load(f"idx:{place}", "test")
    assert str(error.value) == f"dataset idx:{place}: {told}; `classes: remap` numbers those that there are, rising"
    kept = sorted({*train, *test})
    for split, labels in (("train", train), ("test", test)):
        found = load.load(f"idx:{place}", split, REMAP)
        assert found.names == tuple(str(label) for label in kept)
        assert [kept[y] for y in found.y] == labels and np.array_equal(found.x[:, 0], IMAGES)
    assert load.fingerprint(f"idx:{place}", reading=REMAP) != load.fingerprint(f"idx:{place}")


def test_labels_without_holes_over_both_splits_are_as_they_are(tmp_path: Path):
    place = write(tmp_path / "set", [0, 1, 3, 0], [2, 2, 0, 0])
    for reading in (AS_IT_IS, REMAP):
        found = load.load(f"idx:{place}", "test", reading)
        assert found.names == ("0", "1", "2", "3") and found.y.tolist() == [2, 2, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "shape, held, message",
    [
        ((10_000, 10_000, 10_000), 99, " is cut off: its header promises 1000000000000 bytes, 99 are there"),
        ((2**32 - 1,) * 3, 9, f" is cut off: its header promises {(2**32 - 1) ** 3} bytes, 9 are there"),
        ((2**16, 2**16, 2**32 - 1), 0, f" is cut off: its header promises {2**32 * (2**32 - 1)} bytes, 0 are there"),
        ((1, 5, 7), 50_000_000, " is damaged: its header promises 35 bytes, more are there"),
        ((3, 0, 7), 0, ": expected N images of HxW, got 3x0x7"),
        ((2, 3), 6, ": expected N images of HxW, got 2x3"),
        ((2, 3, 4, 3), 72, ": expected N images of HxW, got 2x3x4x3"),
        ((), 1, ": expected N images of HxW, got nothing"),
    ],
    ids=["10^12", "2^96", "overflows to 0", "bomb", "no pixels", "flat", "colour", "no shape"],
)
def test_headers_that_promise_too_much(shape: tuple[int, ...], held: int, message: str, suffix: str, tmp_path: Path):
    content = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(held)
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read_idx(path, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value) == f"{path}{message}"
    assert peak < 5_000_000  # of 50,000,000 that one of them unpacks to


def test_labels_that_are_no_list(tmp_path: Path):
    place = write(tmp_path / "set", [0, 1, 1, 0], [0, 1, 1, 0])
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(whole(np.zeros((4, 8), np.uint8))))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: expected N labels, got 4x8$"):
        load.load(f"idx:{place}", "test")
