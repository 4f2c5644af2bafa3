"""Standard output and error that are closed, full or no longer read."""

import contextlib
import errno
import io
import os
import sys
from typing import Any


class Nowhere(io.TextIOBase):
    """Stands for a closed standard output: what is written there is lost, and said to be."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def hold_streams() -> None:
    """See to it that there is something behind standard input, output and error: else the next file that is opened,
    such as the store, would be it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = Nowhere()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end)


def is_lost(stream: Any) -> bool:
    """Whether what waits in a stream cannot be written."""
    try:
        stream.flush()
    except (OSError, ValueError):
        return True
    return isinstance(stream, Nowhere)


def leave_stdout() -> None:
    """Write nothing more: what waits there would fail again when Python ends, with words of its own."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
