"""A block within a time and a memory, so that what waits for ever or takes all is a failure like any other."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MOST_SECONDS, MOST_BYTES = 20, 12 * 10**9  # of a block; of this process's address space, of which torch has some


@contextmanager
def bounded(seconds: int = MOST_SECONDS) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds, MemoryError where it asks for more than there may be."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before, kept = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, kept[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, kept)
