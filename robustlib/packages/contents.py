"""The files of a package, a folder or a ZIP archive: looked at before anything in them is read."""

import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".zip"
MOST_FILES = 64
TIMES, SMALL_BYTES = 8, 64 * 2**20  # what an archive may unpack to: so many times its size, and this besides
# A name in one piece: no folder, no drive, nothing hidden.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Of an archive's member that is not as it was packed.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, ValueError)
AGAIN = "download or make it again"


class PackageError(ValueError):
    """A package, or a file of it, that is not what it ought to be."""


@dataclass(frozen=True)
class Contents:
    """What lies in a package. sizes: bytes of each file, by its name."""

    place: Path
    sizes: dict[str, int]

    def read(self, name: str) -> bytes:
        """A whole file. Raises PackageError where it is not there, is damaged or longer than it said."""
        if name not in self.sizes:
            raise PackageError(f"{self.place} has no file {name}")
        try:
            data = from_archive(self.place, name) if self.place.is_file() else from_folder(self.place, name)
        except (*BROKEN, OSError, RuntimeError) as error:
            raise PackageError(f"{self.place}: {name} cannot be read ({error}): {AGAIN}") from error
        if len(data) != self.sizes[name]:
            raise PackageError(f"{self.place}: {name} has {len(data)} bytes, expected {self.sizes[name]}: {AGAIN}")
        return data


def from_archive(place: Path, name: str) -> bytes:
    with zipfile.ZipFile(place) as archive:
        return archive.read(name)  # never more than its entry declares, which was looked at


def from_folder(place: Path, name: str) -> bytes:
    """What it is now: a name may lead elsewhere since it was looked at."""
    handle = os.open(place / name, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def open_contents(place: Path) -> Contents:
    """What lies in a package, by name. Raises PackageError for anything that no package has: folders, links, names that
    lead out of it, sizes beyond all proportion.
    """
    if place.is_dir():
        sizes = dict(sizes_in_folder(place))
    elif place.is_file():
        sizes = dict(sizes_in_archive(place))
    else:
        raise PackageError(f"there is no package {place}: expected a folder or a file of `robustq package`")
    return Contents(place, sizes)


def sizes_in_folder(place: Path) -> Iterable[tuple[str, int]]:
    with os.scandir(place) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    check_names(place, [name for name, _ in found])
    for name, state in found:
        if not stat.S_ISREG(state.st_mode):
            what = "a link" if stat.S_ISLNK(state.st_mode) else "no plain file"
            raise PackageError(f"{place}: {shown(name)} is {what}: a package has plain files alone")
        yield name, state.st_size


def sizes_in_archive(place: Path) -> Iterable[tuple[str, int]]:
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise PackageError(f"{place} is no ZIP archive that can be read ({error}): {AGAIN}") from error
    check_names(place, [member.filename for member in members])
    declared, most = sum(member.file_size for member in members), TIMES * place.stat().st_size + SMALL_BYTES
    if declared > most:
        raise PackageError(
            f"{place} unpacks to {declared / 2**20:,.0f} MB, though it has {place.stat().st_size / 2**20:,.1f} MB: "
            f"expected at most {most / 2**20:,.0f} MB"
        )
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise PackageError(f"{place}: {shown(member.filename)} is a link: a package has plain files alone")
        if member.flag_bits & 1:
            raise PackageError(f"{place}: {shown(member.filename)} is encrypted: a package has plain files alone")
        yield member.filename, member.file_size


def check_names(place: Path, names: list[str]) -> None:
    if len(names) > MOST_FILES:
        raise PackageError(f"{place} holds {len(names)} files: a package has at most {MOST_FILES}")
    for name in names:
        if not NAME.fullmatch(name) or ".." in name:
            raise PackageError(f"{place} holds {shown(name)}: a package has files in one folder, with plain names")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PackageError(f"{place} holds {shown(twice[0])} twice")


def shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}...")
