"""The source of a data set as its reader gives it: files, splits, and a split's labels and images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

TEST = "test"
SPLITS = ("train", TEST, "validation")


class DataChanged(ValueError):
    """What is read of a data set is not, or not any more, what belongs to it."""


@dataclass(frozen=True)
class Reading:
    """How a data set is read where its files leave that open.

    label, image: names of the columns.  classes: "remap" numbers the labels that there are from 0 on, rising.
    size: what pictures are resized to: the shorter side, in pixels, or (height, width).  crop: side of the square that
    is then cut from their middle.  exif_transpose: turn pictures as their EXIF data say.
    """

    label: str | None = None
    image: str | None = None
    classes: Literal["remap"] | None = None
    size: int | tuple[int, int] | None = None
    crop: int | None = None
    exif_transpose: bool = False


AS_IT_IS = Reading()


@dataclass(frozen=True)
class Images:
    """A split as read: x uint8 (N, C, H, W), y whole numbers (N,), the classes' names."""

    x: np.ndarray
    y: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Pictures:
    """A split of encoded pictures, which are decoded one by one: y (N,), the classes' names.

    fetch: the bytes of these rows, which rise, in turn.  where: what a picture is called in messages.
    head: instead of the bytes, the files that hold one each, where looking at headers need not read all of them.
    """

    y: np.ndarray
    names: list[str]
    fetch: Callable[[np.ndarray], Iterator[bytes | None]]
    where: Callable[[int], str]
    reading: Reading = AS_IT_IS
    head: Callable[[np.ndarray], Iterator[Path]] | None = None


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    reader: its name, with what sets this reading apart from the usual one.  files: by split as (name, path); those
    that belong to no split under "".  splits: that there are.  read: reads one.  notes: what was taken, where a person
    may wonder.  check: is given the files' hashes by name, and raises DataChanged where one should be another.
    """

    reader: str
    files: dict[str, list[tuple[str, Path]]]
    splits: tuple[str, ...]
    read: Callable[[str], Images | Pictures]
    notes: tuple[str, ...] = ()
    check: Callable[[dict[str, str]], None] = lambda sums: None

    def files_of(self, split: str) -> list[tuple[str, Path]]:
        """What the content of a data set is hashed by that is evaluated on this split."""
        parts = dict.fromkeys(("", "train", TEST, split))
        return [file for part in parts for file in self.files.get(part, [])]
