"""Readers of data sets: each names its source files and gives a split's labels and images."""

import gzip
import importlib.util
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.datasets.folders import class_folders as class_folders
from robustlib.datasets.parquet import numbered
from robustlib.datasets.parquet import parquet as parquet
from robustlib.datasets.source import Images, Reading, Source
from robustlib.datasets.tar import tar as tar


def digits(_: Path) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8x8, every fourth for testing. Needs no network."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: the fingerprint alone must be quick
    if package is None or package.origin is None:
        raise FileNotFoundError("dataset digits needs the package scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return Source("digits", {"": [("digits.csv.gz", path)]}, ("train", "test"), read_digits)


def read_digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    test = np.arange(len(x)) % 4 == 3
    chosen = test if split == "test" else ~test
    return Images(x[chosen], bunch.target[chosen], [str(name) for name in bunch.target_names])


def idx(path: Path, reading: Reading) -> Source:
    """The four files of the MNIST family, plain or gzipped: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (idx_file(path, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
        found[split] = images, labels
    files = {split: [(file.name, file) for file in pair] for split, pair in found.items()}

    def read(split: str) -> Images:
        x, y = (read_idx(file) for file in found[split])
        if len(x) != len(y):
            raise ValueError(f"{found[split][0]} holds {len(x)} images, {found[split][1]} {len(y)} labels")
        return Images(x[:, None], y, numbered(read_idx(labels) for _, labels in found.values()))

    return Source("idx", files, ("train", "test"), read)


def idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"dataset idx:{folder}: expected {name} or {name}.gz there, found neither")


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, http://yann.lecun.com/exdb/mnist/ (format at the foot of that page)."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{path} is no IDX file: it does not start with two zero bytes")
    kind, dimensions = data[2], data[3]
    if kind != 0x08:
        raise ValueError(
            f"{path}: expected unsigned bytes (IDX type 0x08), got type 0x{kind:02X}: images must be 8-bit"
        )
    if len(data) < 4 + 4 * dimensions:
        raise ValueError(f"{path} is cut off: it ends within its header")
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} is cut off: its header promises {int(np.prod(shape))} bytes, {values.size} are there")
    return values.reshape(shape)
