"""Files that a crash leaves whole: on the disk before they get their names."""

import errno
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems have none of folders


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def replace(temporary: Path, target: Path, *, ours: bool = False) -> None:
    """Give a finished file or folder its name, and wait until it has it on the disk. A file takes another's place.

    ours: whether the name is one that only robustq gives. Then a folder that has a file's name, or a file that has a
    folder's, is put aside.
    """
    sync(temporary)
    if ours and os.path.lexists(target) and os.path.isdir(target) != os.path.isdir(temporary):
        put_aside(target)
    os.replace(temporary, target)
    sync(target.parent)


def put_aside(path: Path) -> Path:
    """Give what is in the way another name beside it; returns that."""
    other = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:8]}")
    os.replace(path, other)
    return other


def write(target: Path, content: bytes) -> None:
    """Write a file of robustq's own whole or not at all. Everybody may read it: a cache may be several people's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        replace(temporary, target, ours=True)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
