"""Data sets by name: uint8 on disk and in memory, decoded once into memory-mapped arrays, never floats here.

A data set is read from its source files by a reader (robustlib/readers.py, robustlib/torchvision_sets.py), checked, and
kept as `x.npy` and `y.npy` in a cache folder named by the content of the source files. Opening it again maps those
arrays and reads nothing.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustlib import readers
from robustlib.code import file_hash
from robustlib.readers import Images, Source
from robustlib.torchvision_sets import torchvision_set

FORMAT_VERSION = "1"  # of the cache; part of its folders' names


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    x: images, uint8, shape (N, C, H, W).  y: classes, int64, shape (N,).  names: the classes' names, in order.
    mean, std: of the split by channel, on the scale [0, 1].
    """

    name: str
    split: str
    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def in_channels(self) -> int:
        return self.x.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.x.shape[2], self.x.shape[3]


DATASETS: dict[str, Callable[[Path], Source]] = {
    "digits": readers.digits,
    "mnist": torchvision_set("MNIST"),
    "fashion-mnist": torchvision_set("FashionMNIST"),
    "cifar10": torchvision_set("CIFAR10"),
    "cifar100": torchvision_set("CIFAR100"),
    "svhn": torchvision_set("SVHN"),
}
PATH_DATASETS: dict[str, Callable[[Path], Source]] = {
    "parquet": readers.parquet,
    "idx": readers.idx,
    "folder": readers.class_folders,
}


def home() -> Path:
    """Where caches and downloads are kept: ROBUSTQ_HOME, or robustq in the user's cache folder."""
    if place := os.environ.get("ROBUSTQ_HOME"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robustq"


def source_of(name: str) -> Source:
    """The reader's view of a data set: its source files and how to read a split. Downloads where that is needed."""
    kind, colon, place = name.partition(":")
    if colon and kind in PATH_DATASETS:
        path = Path(place).expanduser()
        with reading():
            if not path.exists():
                raise FileNotFoundError(f"dataset {name}: there is no {path}")
            return PATH_DATASETS[kind](path)
    if name in DATASETS:
        return DATASETS[name](Path(os.environ.get("ROBUSTQ_DATA") or home() / "data"))
    known = ", ".join([*DATASETS, *(f"{kind}:PATH" for kind in PATH_DATASETS)])
    raise ValueError(f"unknown dataset {name!r}, expected one of: {known}")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A file of the user's that cannot be read is what they can mend: the system's error becomes a ValueError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # our own words
            raise
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error


def fingerprint(name: str) -> str:
    """SHA-256 over the content of the data set's source files: the same data has the same one, wherever it lies."""
    return digest(source_of(name))


def digest(source: Source) -> str:
    """Hash every source file. One whose size and time have not changed since it was last hashed is not read again."""
    notes_path = home() / "fingerprints.json"
    try:
        notes = json.loads(notes_path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        notes = {}
    total, fresh = hashlib.sha256(f"{source.reader}/{FORMAT_VERSION}".encode()), False
    for relative, path in source.files:
        with reading():
            stat = path.stat()
            key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in notes:
                notes[key] = file_hash(path)
                fresh = True
        total.update(f"{relative}={notes[key]}\n".encode())
    if fresh:
        write_atomically(notes_path, json.dumps(notes, indent=0))
    return total.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(name: str, split: str) -> Dataset:
    """Open one split ("train" or "test") of a data set, decoding and caching it the first time.

    Raises ValueError for a name that does not exist or images that do not fit together, FileNotFoundError where the
    source is missing and cannot be fetched; both say what to do.
    """
    source = source_of(name)
    folder = home() / "datasets" / f"{digest(source)[:32]}-{split}"
    if not (folder / "facts.json").exists():
        if split not in source.splits:
            raise ValueError(f"dataset {name} has no {split!r} split, it has: {', '.join(source.splits)}")
        store(folder, source.read(split))
    facts = json.loads((folder / "facts.json").read_text())
    # Mode "c" maps the file and never writes it, but lets torch share the memory without a warning.
    x, y = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in "xy")
    return Dataset(name, split, x, y, tuple(facts["names"]), tuple(facts["mean"]), tuple(facts["std"]))


def store(folder: Path, images: Images) -> None:
    """Write the arrays into a temporary folder and rename it: a cache folder is complete or absent."""
    x, y, names = images.x, images.y.astype(np.int64), images.names
    if len(x) == 0:
        raise ValueError("the dataset holds no image")
    if y.min() < 0 or y.max() >= len(names):
        raise ValueError(f"the dataset has labels from {y.min()} to {y.max()}, expected 0 to {len(names) - 1}")
    pixels = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels]) / pixels.shape[1]
    levels = np.arange(256) / 255
    mean = counts @ levels
    std = np.sqrt(counts @ levels**2 - mean**2)
    # A channel that never changes is left unscaled.
    facts = {"names": names, "mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        np.save(temporary / "x.npy", np.ascontiguousarray(x))
        np.save(temporary / "y.npy", y)
        (temporary / "facts.json").write_text(json.dumps(facts))
        os.chmod(temporary, 0o755)
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "facts.json").exists():  # else another process was faster, with the same content
            raise
