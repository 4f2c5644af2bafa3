"""Bounds on the memory that a file of weights takes, by what it declares, before it is unpacked. Free of torch.

torch.save and safetensors write every number as it is, so that a file takes up about its own size, and none of these
limits is near. What is many times that is a few numbers that stand for very many.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

TIMES, SMALL_BYTES = 8, 64 * 2**20  # what may be unpacked: so many times the file's size, and this besides
MOST_TENSORS, MOST_LETTERS = 200_000, 1000  # in all sets of a file together; of a name
AGAIN = "save it again with torch.save, which packs nothing"


def most_bytes(path: Path) -> int:
    return TIMES * os.path.getsize(path) + SMALL_BYTES


def check_archive(path: Path) -> None:
    """Raises ValueError for a ZIP archive whose members unpack to much more than it holds."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    check_bytes(path, declared, "unpacks to")


def check_bytes(path: Path, declared: int, verb: str) -> None:
    if declared > (most := most_bytes(path)):
        raise ValueError(
            f"{path} {verb} {declared / 2**20:,.0f} MB, though it has {os.path.getsize(path) / 2**20:,.1f} MB: "
            f"expected at most {most / 2**20:,.0f} MB, {TIMES} times that and {SMALL_BYTES >> 20} MB: {AGAIN}"
        )


def declared_bytes(path: Path, member: str, operations: Callable[[], Iterable[Any]]) -> int | None:
    """How many bytes a pickle asks for by their number alone, which no pickle of bytes does; None where it does not.

    member: how the name of the pickle ends, where the file is an archive.
    """
    if b"bytearray" not in pickle_bytes(path, member):  # which reading all operations would take long to find
        return None
    waiting = False  # whether all since the name only remembers it or begins its arguments
    for operation, argument, _ in operations():
        if operation.name in ("GLOBAL", "STACK_GLOBAL"):
            waiting = str(argument).endswith("bytearray")
        elif waiting and operation.name.startswith(("BININT", "LONG", "INT")):
            return int(argument)
        elif not operation.name.startswith(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "MARK")):
            waiting = False
    return None


def pickle_bytes(path: Path, member: str) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(SMALL_BYTES)
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(member)))


def within_bounds(path: Path, sets: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same sets. Raises ValueError where they hold more tensors or longer names than any model has."""
    count = 0
    for place, tensors in sets:
        count += len(tensors)
        if count > MOST_TENSORS:
            raise ValueError(f"{path} holds more than {MOST_TENSORS} tensors by name: expected those of a model")
        if (most := max(map(len, (place, *tensors)))) > MOST_LETTERS:
            raise ValueError(f"{path} holds a tensor whose name has {most} letters: expected at most {MOST_LETTERS}")
        yield place, tensors
