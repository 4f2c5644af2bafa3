"""A tree of folders with pictures in them, as one look at the disk finds it."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")  # endings, as in torchvision
PICTURES = (".gif", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".jxl", ".svg", ".npy")  # that are not read
LITTER = ("thumbs.db", "desktop.ini", "icon\r")  # what file managers leave behind
DEEPEST, MOST = 64, 1_000_000  # folders within one another, folders: beyond it is no data set

FEW = 5  # names in a line

Parts = tuple[str, ...]


@dataclass(eq=False)
class Folder:
    """A folder: its place below the data set's, what lies directly in it.

    images: names of files that end like images'.  others: how many other files, by ending.  nothing: folders that no
    tool takes for data.  lost: links that lead nowhere, or back.
    """

    parts: Parts = ()
    folders: dict[str, "Folder"] = field(default_factory=dict)
    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    nothing: list[str] = field(default_factory=list)
    lost: int = 0

    @property
    def place(self) -> str:
        return printable("/".join(self.parts))

    @property
    def name(self) -> str:
        return printable(self.parts[-1])

    @property
    def is_outer(self) -> bool:
        """Whether its images lie in folders alone."""
        return bool(self.folders) and not self.images

    def walk(self) -> Iterator["Folder"]:
        """It and all folders below."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def holds(self) -> bool:
        """Whether there is an image anywhere below."""
        return any(folder.images for folder in self.walk())

    def files(self) -> list[Parts]:
        """The images anywhere below, in the order of their folders' and their own names."""
        return sorted((*folder.parts, name) for folder in self.walk() for name in folder.images)

    def count_lost(self) -> int:
        return sum(folder.lost for folder in self.walk())

    def other_files(self) -> Counter[str]:
        """How many files below are none of the images, by ending."""
        return sum((folder.others for folder in self.walk()), Counter())


def read_tree(path: Path) -> Folder:
    """The tree at a path. Links are followed, as torchvision does; hidden files and folders are not looked at."""
    return read_folder(os.fspath(path), (), frozenset(), [0])


def read_folder(place: str, parts: Parts, above: frozenset[tuple[int, int]], count: list[int]) -> Folder:
    """above: the folders that this one lies in, by device and number.  count: of the folders so far."""
    count[0] += 1
    if len(parts) > DEEPEST or count[0] > MOST:
        raise ValueError(f"{place}: more than {DEEPEST} folders within one another, or {MOST} in all: no data set")
    above |= {identity(place)}
    found = Folder(parts)
    with os.scandir(place) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name.lower() in LITTER:
                continue
            if entry.is_symlink() and (not os.path.exists(entry.path) or identity(entry.path) in above):
                found.lost += 1
            elif not entry.is_dir():
                ending = ending_of(name)
                if ending in IMAGES and entry.is_file():
                    found.images.append(name)
                else:
                    found.others[ending] += 1
            elif name.startswith("__"):  # __MACOSX, __pycache__
                found.nothing.append(name)
            else:
                found.folders[name] = read_folder(entry.path, (*parts, name), above, count)
    return found


def identity(place: str) -> tuple[int, int]:
    stat = os.stat(place)
    return stat.st_dev, stat.st_ino


def ending_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def printable(name: str) -> str:
    """A name that text can hold: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def counts_text(others: Counter[str]) -> str:
    """Files by ending, in words."""
    return ", ".join(f"{n} {printable(ending) or 'without an ending'}" for ending, n in sorted(others.items()))


def first_names(names: Iterable[str]) -> str:
    """The first few of some names, in words."""
    some = [printable(name) for name in names]
    more = f" and {len(some) - FEW} more" if len(some) > FEW else ""
    return ", ".join(some[:FEW]) + more
