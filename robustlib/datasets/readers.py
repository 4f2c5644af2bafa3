"""Readers of data sets: each names its source files and gives a split's labels and images."""

import gzip
import importlib.util
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from robustlib.datasets.folders import class_folders as class_folders
from robustlib.datasets.labels import Labels, classes_of, y_of
from robustlib.datasets.parquet import parquet as parquet
from robustlib.datasets.source import AS_IT_IS, TEST, Images, Reading, Source
from robustlib.datasets.tar import tar as tar
from robustlib.number_text import counted

PIECE = 1 << 20  # bytes decompressed at once


def digits(_: Path) -> Source:
    """scikit-learn's handwritten digits: 1,797 images of 8x8, every fourth for testing. Needs no network."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: the fingerprint alone must be quick
    if package is None or package.origin is None:
        raise FileNotFoundError("dataset digits needs the package scikit-learn: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return Source("digits", {"": [("digits.csv.gz", path)]}, ("train", "test"), read_digits)


def read_digits(split: str) -> Images:
    from sklearn.datasets import load_digits

    try:
        bunch: Any = load_digits()
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"dataset digits: the file of the package scikit-learn is damaged ({error}): "
            "pip install --force-reinstall scikit-learn"
        ) from error
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    test = np.arange(len(x)) % 4 == 3
    chosen = test if split == "test" else ~test
    return Images(x[chosen], bunch.target[chosen], [str(name) for name in bunch.target_names])


def idx(path: Path, reading: Reading = AS_IT_IS) -> Source:
    """The four files of the MNIST family, plain or gzipped: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].

    The labels of both splits together are the classes. Raises ValueError for labels with holes that are not remapped.
    """
    where = f"dataset idx:{path}"
    found: dict[str, tuple[Path, Path]] = {}
    for split, prefix in (("train", "train"), (TEST, "t10k")):
        images, labels = (idx_file(path, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1"))
        found[split] = images, labels
    files = {split: [(file.name, file) for file in pair] for split, pair in found.items()}

    def read(split: str) -> Images:
        labels = {other: read_labels(file) for other, (_, file) in found.items()}
        x, count = read_idx(found[split][0], 3), len(labels[split])
        if len(x) != count:
            raise ValueError(
                f"{found[split][0]} holds {counted(len(x), 'image')}, {found[split][1]} {counted(count, 'label')}"
            )
        classes = classes_of(where, labels.values(), None, remap=reading.classes == "remap")
        return Images(x[:, None], y_of(where, split, [labels[split]], classes), classes.names)

    return Source("idx", files, ("train", TEST), read)


def idx_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"dataset idx:{folder}: expected {name} or {name}.gz there, found neither")


def read_labels(path: Path) -> Labels:
    values, codes = np.unique(read_idx(path, 1), return_inverse=True)
    return Labels(path, values.tolist(), codes)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, http://yann.lecun.com/exdb/mnist/ (format at the foot of that page)."""
    try:
        with open_idx(path) as file:
            shape = read_shape(file, path, dimensions)
            promised = math.prod(shape)  # numpy's overflows
            data = read_up_to(file, promised + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    if len(data) > promised:
        raise ValueError(f"{path} is damaged: its header promises {promised} bytes, more are there")
    if len(data) < promised:
        raise ValueError(f"{path} is cut off: its header promises {promised} bytes, {len(data)} are there")
    return np.frombuffer(data, np.uint8).reshape(shape)


def open_idx(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def read_shape(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"{path} is no IDX file: it does not start with two zero bytes")
    if start[2] != 0x08:
        raise ValueError(
            f"{path}: expected unsigned bytes (IDX type 0x08), got type 0x{start[2]:02X}: images must be 8-bit"
        )
    sizes = file.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise ValueError(f"{path} is cut off: it ends within its header")
    shape = struct.unpack(f">{start[3]}I", sizes)
    if len(shape) != dimensions or 0 in shape[1:]:
        form = "x".join(str(side) for side in shape) or "nothing"
        raise ValueError(f"{path}: expected {'N images of HxW' if dimensions == 3 else 'N labels'}, got {form}")
    return shape


def read_up_to(file: IO[bytes], most: int) -> bytearray:
    """At most so many bytes, piece by piece: a header may promise, and a compressed file hold, any number."""
    data = bytearray()
    while len(data) < most and (piece := file.read(min(PIECE, most - len(data)))):
        data += piece
    return data
