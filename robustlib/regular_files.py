"""Files that are files: what blocks, never ends or is no file on a disk is refused before it is opened."""

import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
MADE_UP = ("/proc/", "/sys/")  # of these the system makes up the content, and opening some waits for ever


def irregular(path: str | Path) -> str | None:
    """What a path leads to, in words, where that is no regular file; None for one, and where there is nothing."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        real = os.path.realpath(path)
    except (OSError, ValueError):  # the latter for a zero byte in the path
        return None
    if kind == stat.S_IFREG:
        return "a file that the system makes up" if real.startswith(MADE_UP) else None
    return KINDS.get(kind, "no file")
