"""Data sets by name: uint8 on disk and in memory, decoded as they are needed into a cache, never floats here.

A data set is read from its source files by a reader (readers.py). Its labels, and its images one by one as they are
asked for, are kept in a cache folder named by the content of the source files. Whatever is read from there is checked
by a hash, once a process, and made again where it is damaged.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.arguments import COUNT, check_range
from robustlib.datasets import pictures, readers, split_cache
from robustlib.datasets.decoded_images import Pixels
from robustlib.datasets.file_stamps import HashedFile, hash_files, is_unchanged
from robustlib.datasets.hashed_files import read_sealed, write_sealed
from robustlib.datasets.source import AS_IT_IS, TEST, DataChanged, Images, Pictures, Reading, Source
from robustlib.datasets.statistics import statistics
from robustlib.datasets.torchvision_sets import torchvision_set
from robustlib.names import did_you_mean
from robustlib.regular_files import irregular

FORMAT_VERSION = "1"  # of what a fingerprint is made of, which is part of every job's key
CACHE_VERSION = "2"  # of the cache's files; part of its folders' names


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    images: uint8, (N, C, H, W), decoded as they are asked for.  y: classes, int64, shape (N,).  names: the classes'
    names, in order.  notes: how it was read, where a person may wonder.
    """

    name: str
    split: str
    images: Pixels
    y: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> np.ndarray:
        """All images at once, decoded; memory holds what is read of them."""
        return self.images.whole()

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def in_channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation by channel, on the scale [0, 1]. The first time every image is decoded."""
        place = self.images.folder / "moments.json"
        found = read_sealed(place)
        if found is None:
            found = statistics(self.images)
            write_sealed(place, found)
        return tuple(found[0]), tuple(found[1])

    @property
    def mean(self) -> tuple[float, ...]:
        return self.moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        return self.moments[1]


DATASETS: dict[str, Callable[[Path], Source]] = {
    "digits": readers.digits,
    "mnist": torchvision_set("MNIST"),
    "fashion-mnist": torchvision_set("FashionMNIST"),
    "cifar10": torchvision_set("CIFAR10"),
    "cifar100": torchvision_set("CIFAR100"),
    "svhn": torchvision_set("SVHN"),
}
PATH_DATASETS: dict[str, Callable[[Path, Reading], Source]] = {
    "parquet": readers.parquet,
    "idx": readers.idx,
    "folder": readers.class_folders,
    "tar": readers.tar,
}
# What of a reading each of them has a use for.
TAKES = {
    "parquet": ("label", "image", "classes", "size", "crop", "exif_transpose"),
    "idx": ("classes",),
    "folder": ("size", "crop", "exif_transpose"),
    "tar": ("label", "image", "classes", "size", "crop", "exif_transpose"),
}


def home() -> Path:
    """Where caches and downloads are kept: ROBUSTQ_HOME, or robustq in the user's cache folder."""
    if place := os.environ.get("ROBUSTQ_HOME"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robustq"


def source_of(name: str, reading: Reading = AS_IT_IS) -> Source:
    """The reader's view of a data set: its source files and how to read a split. Downloads where that is needed."""
    kind, colon, place = name.partition(":")
    if colon and kind in PATH_DATASETS:
        check_reading(name, kind, reading)
        path = Path(place).expanduser()
        with users_files():
            if not path.exists():
                raise FileNotFoundError(f"dataset {name}: there is no {path}")
            if not path.is_dir() and (wrong := irregular(path)) is not None:
                raise ValueError(f"dataset {name}: expected a file or a folder, got {path}, which is {wrong}")
            return PATH_DATASETS[kind](path, reading)
    if name in DATASETS:
        check_reading(name, name, reading)
        return DATASETS[name](Path(os.environ.get("ROBUSTQ_DATA") or home() / "data"))
    known = ", ".join([*DATASETS, *(f"{kind}:PATH" for kind in PATH_DATASETS)])
    meant = did_you_mean(f"{kind}:", [f"{one}:" for one in PATH_DATASETS]) if colon else did_you_mean(name, DATASETS)
    raise ValueError(f"unknown dataset {name!r}, expected one of: {known}{meant}")


def check_reading(name: str, kind: str, reading: Reading) -> None:
    """Raises ValueError for what has no effect on a data set of this kind, or is no size."""
    for option, value in non_default(reading).items():
        if option not in TAKES.get(kind, ()):
            takers = ", ".join(f"{other}:PATH" for other, taken in TAKES.items() if option in taken)
            raise ValueError(f"{option} has no effect on dataset {name}: expected one of {takers}")
        sides = value if isinstance(value, tuple) else (value,)
        for side in sides if option in ("size", "crop") else ():
            check_range("", option, side, COUNT)


def non_default(reading: Reading) -> dict[str, Any]:
    """What a reading asks for beyond the usual."""
    usual = asdict(AS_IT_IS)
    return {option: value for option, value in asdict(reading).items() if value != usual[option]}


@contextlib.contextmanager
def users_files() -> Iterator[None]:
    """A file of the user's that cannot be read is what they can mend: the system's error becomes a ValueError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # our own words
            raise
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from error


def fingerprint(name: str, split: str = TEST, reading: Reading = AS_IT_IS) -> str:
    """SHA-256 over the content of the data set's source files: the same data has the same one, wherever it lies.

    split: that is evaluated; a study of another than "test" rests on its files too.
    """
    return digest(source_of(name, reading), split, reading)


def digest(source: Source, split: str = TEST, reading: Reading = AS_IT_IS) -> str:
    return source_hashes(source, split, reading)[0]


def source_hashes(source: Source, split: str, reading: Reading) -> tuple[str, dict[Path, HashedFile]]:
    """Hash every source file, and all of them together. One that is known by its stamp is not read again."""
    how = "".join(f"/{option}={value}" for option, value in sorted(non_default(reading).items()))
    total = hashlib.sha256(f"{source.reader}/{FORMAT_VERSION}{how}".encode())
    files = source.files_of(split)
    with users_files():
        seen = hash_files(home(), [path for _, path in files])
    source.check({relative: seen[path].sha256 for relative, path in files})
    for relative, path in files:
        total.update(f"{relative}={seen[path].sha256}\n".encode())
    return total.hexdigest(), seen


def load(name: str, split: str, reading: Reading = AS_IT_IS) -> Dataset:
    """Open one split ("train", "test" or "validation") of a data set; its images are decoded as they are asked for.

    The first time its labels are read and its pictures looked at. Raises ValueError for a name that does not exist or
    images that do not fit together, FileNotFoundError where the source is missing and cannot be fetched; both say what
    to do.
    """
    source = source_of(name, reading)
    content, seen = source_hashes(source, split, reading)
    folder = home() / "datasets" / f"{content[:32]}-{split}-{CACHE_VERSION}"
    facts = split_cache.facts_of(folder)
    if facts is None:
        check_split(name, split, source)
        with users_files():
            facts = split_cache.store(folder, source.read(split), check=lambda: check_same(name, seen, seen))
    found = Undecoded(name, split, source, seen, facts["form"])
    images = Pixels(folder, tuple(facts["shape"]), found.decode, found.check)
    y = np.load(folder / "y.npy")
    return Dataset(name, split, images, y, tuple(facts["names"]), (*source.notes, *facts["notes"]))


def check_split(name: str, split: str, source: Source) -> None:
    if split not in source.splits:
        there = ", ".join(source.splits)
        other = next(other for other in ("validation", *source.splits) if other in source.splits)
        mend = f": `split: {other}` evaluates on that" if split == TEST else ""
        raise ValueError(f"dataset {name} has no {split!r} split, it has: {there}{mend}")


def check_same(name: str, seen: dict[Path, HashedFile], paths: Iterable[Path]) -> None:
    """Raises DataChanged where a file is no longer what was hashed."""
    for path in paths:
        try:
            same = is_unchanged(path, seen[path])
        except OSError:  # it could be read before
            same = False
        if not same:
            raise DataChanged(f"dataset {name}: {path} has changed since it was opened: submit the study again")


@dataclass
class Undecoded:
    """A split's images in their source files. seen: what the files were hashed as."""

    name: str
    split: str
    source: Source
    seen: dict[Path, HashedFile]
    form: list[Any] | None
    found: Images | Pictures | None = None

    def decode(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The images of these rows, which rise, in turn. Raises ValueError for what is damaged."""
        with users_files():
            self.found = self.found or self.source.read(self.split)
            if isinstance(self.found, Images):
                yield from self.found.x[rows]
                return
            assert self.form is not None  # of pictures there is one
            form = pictures.Form(self.form[0], tuple(self.form[1]))
            for row, data in zip(rows.tolist(), self.found.fetch(rows), strict=True):
                yield pictures.decode(data, self.found.where(row), form, self.found.reading)

    def check(self, rows: np.ndarray) -> None:
        """After these rows were decoded: raises ValueError where a file that they may have come from has changed."""
        head = self.found.head if isinstance(self.found, Pictures) else None
        check_same(self.name, self.seen, self.seen if head is None else head(rows))
