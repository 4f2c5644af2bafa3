"""Readers of torchvision's data sets: downloaded and checked by torchvision, or put there by the user."""

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from robustlib import durable_files
from robustlib.datasets import split_cache
from robustlib.datasets.hashed_files import read_sealed, write_sealed
from robustlib.datasets.source import DataChanged, Images, Source

COMPLETE = ".complete"  # is there once all files are, with their hashes


def torchvision_set(name: str) -> Callable[[Path], Source]:
    """A reader of one of torchvision's data sets, downloaded and checked by torchvision."""
    return partial(open_torchvision, name)


def open_torchvision(name: str, root: Path) -> Source:
    folder = root / name.lower()
    if not (folder / COMPLETE).is_file():
        download(name, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(COMPLETE))
    relative = [(str(path.relative_to(folder)), path) for path in files]
    read, check = partial(read_torchvision, name, folder), partial(check_sums, name, folder)
    return Source(f"torchvision/{name}", {"": relative}, ("train", "test"), read, check=check)


def download(name: str, folder: Path) -> None:
    """See that all files are there. Those that a person put into the folder are looked at by torchvision, in place."""
    if folder.is_dir():
        fetch_all(name, folder, folder)
        return
    with split_cache.unfinished(folder) as temporary:  # or what a killed download left would pass for the whole
        fetch_all(name, temporary, folder)
        for path in temporary.rglob("*"):
            durable_files.sync(path)
        durable_files.replace(temporary, folder, ours=True)


def fetch_all(name: str, place: Path, shown: Path) -> None:
    for split in ("train", "test"):
        fetch(name, place, split, download=True, shown=shown)
    durable_files.write(place / COMPLETE, b"")


def check_sums(name: str, folder: Path, sums: dict[str, str]) -> None:
    """Raise DataChanged where a file is not what it was when it was first read after the download.

    sums: the files' hashes by name, which are noted the first time.
    """
    noted = read_sealed(folder / COMPLETE)
    if noted is None:  # they have just come, or an older release put them there
        with contextlib.suppress(OSError):  # a folder of somebody else's, who lets it be read
            write_sealed(folder / COMPLETE, sums)
        return
    for file, sha256 in noted.items():
        if sums.get(file) != sha256:
            state = "is damaged, its content has another hash than once" if file in sums else "is missing"
            raise DataChanged(
                f"dataset {name}: {folder / file} {state}: remove {folder} and it is downloaded again, or only "
                f"{folder / COMPLETE} if you have changed the data yourself"
            )


def fetch(name: str, folder: Path, split: str, *, download: bool, shown: Path | None = None) -> Any:
    """torchvision's data set. shown: the folder that a message names instead."""
    from torchvision import datasets

    shown = shown or folder
    which = {"split": split} if name == "SVHN" else {"train": split == "train"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the results
            return getattr(datasets, name)(root=str(folder), download=download, **which)
    except (URLError, RuntimeError) as error:
        raise FileNotFoundError(
            f"dataset {name} could not be downloaded ({error}): put torchvision's files of {name} into {shown}, "
            "or use one that works offline: digits, parquet:PATH, idx:PATH, folder:PATH, tar:PATH"
        ) from error


def read_torchvision(name: str, folder: Path, split: str) -> Images:
    data = fetch(name, folder, split, download=False)
    x = np.asarray(data.data)
    if x.ndim == 3:  # MNIST: (N, H, W)
        x = x[:, None]
    elif x.shape[-1] == 3:  # CIFAR: (N, H, W, C); SVHN has its channels in front
        x = x.transpose(0, 3, 1, 2)
    y = np.asarray(data.labels if name == "SVHN" else data.targets)
    names = getattr(data, "classes", None) or [str(label) for label in range(10)]
    return Images(x, y, list(names))
