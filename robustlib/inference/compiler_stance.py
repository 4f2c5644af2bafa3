"""The switch by which functions of `torch.compile` run as they were written."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Uncompiled:
    """The compiler's stance, which belongs to the process. Threads may hold it at once: who does is counted."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.stance: Any = None  # what puts it back, while somebody holds it

    def hold(self) -> None:
        with self.lock:
            if self.stance is None and "torch._dynamo" in sys.modules:  # before it is loaded nothing is compiled
                self.stance = torch.compiler.set_stance("force_eager")
            self.holders += 1

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if self.holders == 0 and self.stance is not None:
                self.stance.__exit__(None, None, None)
                self.stance = None


UNCOMPILED = Uncompiled()


@contextmanager
def uncompiled() -> Iterator[None]:
    """No code of the compiler's: hooks that are put on layers after the first call are left out by it."""
    UNCOMPILED.hold()
    try:
        yield
    finally:
        UNCOMPILED.release()
