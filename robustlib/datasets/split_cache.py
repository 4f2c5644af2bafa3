"""The cache of a split: a folder with its facts, its labels, and its images as far as they were decoded."""

import hashlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from robustlib import durable_files
from robustlib.datasets import decoded_images, pictures
from robustlib.datasets.hashed_files import read_sealed, write_sealed
from robustlib.datasets.source import Images, Pictures

FACTS = "facts.json"
PARTIAL = ".partial-"  # begins the names of folders that are being made
ABANDONED_SECONDS = 24 * 3600.0


def facts_of(folder: Path) -> Any:
    """Names, form and notes of a cached split; None where it is not there, or damaged beyond single images."""
    facts = read_sealed(folder / FACTS)
    return facts if facts is not None and is_whole(folder, facts) else None


def is_whole(folder: Path, facts: Any) -> bool:
    """Whether the labels are what they were, and the files of the images have their sizes."""
    try:
        sizes = (folder / "x.bin").stat().st_size, (folder / "x.sums").stat().st_size
        there = sizes == (math.prod(facts["shape"]), facts["shape"][0] * decoded_images.SUM_BYTES)
        return there and hashlib.sha256((folder / "y.npy").read_bytes()).hexdigest() == facts["y_sha256"]
    except OSError:
        return False


def store(folder: Path, found: Images | Pictures, check: Callable[[], None] = lambda: None) -> Any:
    """Make the cache of a split; returns its facts. Pictures are only looked at, images kept as they are.

    check: raises where what was read is not what it should be, before it is kept.

    Raises ValueError where they, or their labels, do not fit together.
    """
    y, names = found.y.astype(np.int64), found.names
    if len(y) == 0:
        raise ValueError("the dataset holds no image")
    if y.min() < 0 or y.max() >= len(names):
        raise ValueError(f"the dataset has labels from {y.min()} to {y.max()}, expected 0 to {len(names) - 1}")
    facts: dict[str, Any] = {"names": list(names), "form": None, "notes": []}
    with complete_or_absent(folder) as temporary:
        if isinstance(found, Pictures):
            form = pictures.common_form(found)
            facts |= {"form": [form.mode, list(form.shape)], "notes": list(form.notes)}
            facts["shape"] = [len(y), *form.shape]
            decoded_images.create_files(temporary, tuple(facts["shape"]))
        else:
            facts["shape"] = list(found.x.shape)
            decoded_images.store_images(temporary, found.x)
        np.save(temporary / "y.npy", y)
        facts["y_sha256"] = hashlib.sha256((temporary / "y.npy").read_bytes()).hexdigest()
        write_sealed(temporary / FACTS, facts)
        check()
    return facts


@contextmanager
def complete_or_absent(folder: Path) -> Iterator[Path]:
    """A temporary folder, renamed at the end of the block: a cache folder is complete or absent.

    One that is there but damaged makes way for it.
    """
    with unfinished(folder) as temporary:
        try:
            yield temporary
            for name in temporary.iterdir():
                durable_files.sync(name)
            if folder.is_dir() and facts_of(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
            durable_files.replace(temporary, folder, ours=True)
        except OSError:
            if facts_of(folder) is None:  # else another process was faster, with the same content
                raise


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A temporary folder beside another, for what is in the making. What is left of it goes at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{PARTIAL}*"):  # by processes that were killed
        with suppress(FileNotFoundError):  # another process was faster
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PARTIAL))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
