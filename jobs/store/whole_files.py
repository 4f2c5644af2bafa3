"""Whole files under their names: never half of one, never over another."""

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robustlib import durable_files


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A name beside `target` for a file in the making. What is left of it goes at the end."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            if os.path.exists(f"{part}{ending}"):
                os.unlink(f"{part}{ending}")


def give_name(part: Path, target: Path) -> None:
    """Give a finished file its name. Raises FileExistsError where another has it."""
    durable_files.sync(part)
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError as error:  # no links on this file system, where looking and renaming are two steps
        if target.exists():
            raise FileExistsError(str(target)) from error
        part.rename(target)
    durable_files.sync(target.parent)


def write_copy(db: sqlite3.Connection, target: Path) -> None:
    """A copy of an open database, whole also while others write. Raises FileExistsError where the name is taken."""
    if target.exists():
        raise FileExistsError(str(target))
    with unfinished(target) as part:
        db.execute("VACUUM INTO ?", (str(part),))
        give_name(part, target)
