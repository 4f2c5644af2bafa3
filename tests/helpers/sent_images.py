"""Bodies of requests with images: what is read of them, or the line with which they are refused."""

import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from robustq.jobs.serving.images import most_bytes, read_images
from robustq.jobs.serving.refusals import Refused
from robustq.jobs.serving.settings import Settings
from tests.helpers.served import FACTS, some_images

SETTINGS = Settings(request_images=8)
X = some_images(3)
FLOATS = X.astype(np.float32) / np.float32(255)


def read(body: bytes, kind: str, layout: str = "CHW", facts: Any = FACTS) -> np.ndarray:
    found = read_images(body, kind, facts, SETTINGS, layout)
    assert found.dtype == np.float32 and found.shape[1:] == facts.image and found.flags.c_contiguous
    assert len(body) <= most_bytes(kind, facts, SETTINGS)
    return found


def refusal(
    body: bytes, kind: str, layout: str = "CHW", facts: Any = FACTS, settings: Settings = SETTINGS
) -> tuple[int, str]:
    with pytest.raises(Refused) as error:
        read_images(body, kind, facts, settings, layout)
    assert "\n" not in error.value.line and len(error.value.line) < 400
    return error.value.status, error.value.line


@contextmanager
def taking_less_than(size: int) -> Iterator[None]:
    """Memory of Python and NumPy, in bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of this size by its header, RGB, 8 bits."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data or zlib.compress(b"")) + chunk(b"IEND", b"")
    )
