"""Source files by their hashes, which are noted: a file whose stamp is known is not read again.

A stamp cannot tell a file from itself after an edit that falls into the same tick of the disk's clock. As in git, whose
index has the same trouble ("racy git", its Documentation/technical/racy-git.txt), a hash is noted only of a file that
had last been changed a while before it was read; others are read again.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from robustlib.datasets.hashed_files import read_sealed, write_sealed
from robustlib.hashing import file_hash

clock = time.time
GRANULARITY_SECONDS = 2.0  # of FAT; other file systems have finer ticks
MOST_NOTES = 256  # files of them


@dataclass
class HashedFile:
    """A file as it was hashed. sure: whether each later change is seen in the stamp."""

    stamp: str
    sha256: str
    sure: bool


def stamp(path: Path) -> tuple[str, bool]:
    """What tells a file from another, and from itself after an edit, without reading it; whether each edit from now on
    will be seen in it.

    Besides the time of the last edit, which anybody can set back, it has that of the last change of the file's record.
    Where one of them lies ahead, a clock is wrong.
    """
    now = clock()
    stat = os.stat(path)
    text = f"{stat.st_dev}:{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
    return text, max(stat.st_mtime, stat.st_ctime) + GRANULARITY_SECONDS < now


def hash_file(path: Path) -> HashedFile:
    """Hash a file."""
    found, sure = stamp(path)
    return HashedFile(found, file_hash(path), sure)


def is_unchanged(path: Path, seen: HashedFile) -> bool:
    """Whether a file is still what it was. It is read again where its stamp may lie."""
    if seen.sure:
        return stamp(path)[0] == seen.stamp
    again = hash_file(path)
    seen.sure = again.sure
    return (again.stamp, again.sha256) == (seen.stamp, seen.sha256)


def hash_files(home: Path, paths: Iterable[Path]) -> dict[Path, HashedFile]:
    """Hash these files, with notes below `home` of those that were hashed before."""
    names = {path: os.path.abspath(path) for path in paths}
    if not names:
        return {}
    place = notes_place(home, names.values())
    notes = read_sealed(place) or {}
    found: dict[Path, HashedFile] = {}
    fresh = False
    for path, name in names.items():
        now = stamp(path)[0]
        if (noted := notes.get(name)) is not None and noted[0] == now:
            found[path] = HashedFile(now, noted[1], True)
            continue
        found[path] = hash_file(path)
        if found[path].sure:
            notes[name] = [found[path].stamp, found[path].sha256]
            fresh = True
    if fresh:
        with suppress(OSError):  # a home that lets itself be read only: the files are read again then
            write_sealed(place, {name: note for name, note in notes.items() if os.path.exists(name)})
            prune(place.parent)
    return found


def notes_place(home: Path, names: Iterable[str]) -> Path:
    """The notes of the files in one folder, the lowest that has all of them."""
    ends = sorted(names)
    common = os.path.commonpath([ends[0], ends[-1]])  # what lies between them begins alike
    return home / "fingerprints" / f"{hashlib.sha256(os.fsencode(common)).hexdigest()[:32]}.json"


def prune(folder: Path) -> None:
    """Keep the notes that were written last. Those of older releases were one file for all."""
    with suppress(OSError):  # another process was faster, or what is there is not ours
        (folder.parent / "fingerprints.json").unlink(missing_ok=True)
    with suppress(OSError):
        written = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in written[:-MOST_NOTES]:
            path.unlink()
