"""Positions of the members of tar files: found by their headers, read in place, never extracted."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustlib.datasets.file_types import describe_bytes
from robustlib.datasets.tar_headers import Modest, TooLarge

BLOCK = 512
PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "zstd -d"}


@dataclass(frozen=True, slots=True)
class Member:
    """A file within a tar file: where its bytes begin there, and how many they are."""

    archive: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}, member {self.name}"

    def read(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def check_plain(path: Path) -> None:
    """Raises ValueError for a packed file: reading its rows at random would unpack all before each of them."""
    with path.open("rb") as file:
        begins = file.read(8)
    if tool := next((tool for magic, tool in PACKED.items() if begins.startswith(magic)), None):
        raise ValueError(f"{path} is packed: expected a plain tar file, so `{tool}` it first")


def members(path: Path) -> Iterator[Member]:
    """The regular files in a tar file, in their order. Links and devices are passed over, and so are names that leave
    the archive and what macOS and others hide. Raises ValueError for a file that is none, or is cut off.
    """
    check_plain(path)
    try:
        with tarfile.open(path, "r:", tarinfo=Modest) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"] = []  # else it keeps every one
                if member.issparse():
                    raise ValueError(f"{path}: member {member.name} is sparse: expected plain files, so pack it anew")
                if member.isreg() and is_plain(member.name):
                    yield Member(path, member.name.removeprefix("./"), member.offset_data, member.size)
            end = archive.offset
    except TooLarge as error:
        raise ValueError(f"{path} is damaged, or no data set: {error}") from error
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is no tar file, or is cut off: {describe_file(path, error)}") from error
    check_end(path, end)


def is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not path.name.startswith(".")


def describe_file(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        named = describe_bytes(file.read(64))
    return str(error) if "something else" in named else named


def check_end(path: Path, end: int) -> None:
    """Raises ValueError where the blocks of zeros that end a tar file are missing, or where something follows them.

    tarfile stops in silence at both.
    """
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(BLOCK)
        if len(rest) < BLOCK or any(rest):
            raise ValueError(f"{path} is cut off or damaged: it does not end as a tar file, at byte {end}")
        while rest := file.read(2**20):
            if rest.strip(b"\0"):
                raise ValueError(f"{path}: something follows the end of the archive: expected one archive in the file")
