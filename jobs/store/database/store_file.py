"""The file of an SQLite store: a path that can be one, on a disk that SQLite can bear."""

import errno
import os
from pathlib import Path

from robustlib.names import near_file
from robustlib.regular_files import irregular
from robustq.jobs.errors import StoreError

# As Linux names them: there several hosts may have the file open, which SQLite's write-ahead log cannot bear.
NETWORK = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "pvfs2", "fuse.sshfs",
    "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.juicefs",
}  # fmt: skip
MOUNTS = Path("/proc/self/mounts")


def checked_path(path: Path) -> Path:
    """The path of a store. Raises StoreError for one that no file can have, and for what is no file."""
    try:
        str(path).encode()
        os.lstat(path)
    except ValueError as error:  # of a zero byte, or of half a character
        raise StoreError(f"store {path}: no file can have this name ({error}): name another with --store") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise StoreError(f"store {path}: {error.strerror}: name another with --store") from error
    if path.is_dir():
        raise StoreError(f"expected the store as a file such as {path}/results.db, got the folder {path}")
    if (kind := irregular(path)) is not None:
        raise StoreError(f"expected the store as a file, got {path}, which is {kind}: name another with --store")
    if path.is_symlink() and not path.exists() and is_loop(path):
        raise StoreError(f"store {path} is a link that leads back to itself: name another with --store")
    return path


def is_loop(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def no_store(path: Path) -> StoreError:
    made = "`robustq run` or `robustq submit` makes one, --store names another"
    return StoreError(f"there is no store {path}: {made}{near_file(path)}")


def network_file_system(path: Path) -> str | None:
    """The network file system that a file lies on; None on a local one, and where the system does not tell."""
    try:
        lines = [line.split(" ") for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return None
    real = Path(os.path.realpath(path))
    mounts = {Path(fields[1].replace("\\040", " ")): fields[2] for fields in lines if len(fields) > 2}
    found = next((mounts[parent] for parent in (real, *real.parents) if parent in mounts), None)
    return found if found in NETWORK else None
