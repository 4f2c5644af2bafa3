"""A served model whose answers are known, and requests to it."""

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette

from robustlib.datasets.source import Reading
from robustq.jobs.serving.answers import Answer
from robustq.jobs.serving.facts import Facts
from robustq.jobs.serving.server import server_of
from robustq.jobs.web.listening import listen

SHAPE: tuple[int, int, int] = (3, 6, 5)
CLASSES = ["red", "green", "blue"]
FACTS = Facts("colours", "ab" * 32, b'{"name": "colours"}', b"# colours\n", SHAPE, CLASSES, Reading())


class Colours:
    """An engine whose logits are the means of the channels, so that an image's class is its strongest colour.

    sizes: of the batches that it got.  open: it answers while this is set.  error: raised instead of an answer.
    """

    def __init__(self) -> None:
        self.image, self.classes, self.mode = SHAPE, CLASSES, "means of channels"
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def answer(self, images: np.ndarray) -> list[Answer]:
        self.sizes.append(len(images))
        assert self.open.wait(60)
        if self.error is not None:
            raise self.error
        assert images.dtype == np.float32 and images.shape[1:] == SHAPE
        return [Answer(int(row.argmax()), row, "logits") for row in images.mean(axis=(2, 3))]


def some_images(n: int, seed: int = 0) -> np.ndarray:
    """uint8, shape (n, 3, 6, 5)."""
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), np.uint8)


def means(images: np.ndarray) -> np.ndarray:
    """What Colours gives for bytes."""
    return (images.astype(np.float32) / np.float32(255)).mean(axis=(2, 3))


def npy(array: np.ndarray, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def instances(images: np.ndarray) -> bytes:
    return json.dumps({"instances": images.tolist()}).encode()


def picture(pixels: np.ndarray, form: str = "PNG", mode: str | None = None, **how: Any) -> bytes:
    """An image, uint8, (C, H, W), as a file."""
    file, found = io.BytesIO(), Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    (found if mode is None else found.convert(mode)).save(file, form, **how)
    return file.getvalue()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, path: str, body: Any = None, kind: str | None = None, method: str | None = None, **headers: str
) -> Reply:
    """One request on a connection of its own. kind: Content-Type.  headers: with _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        named["Content-Type"] = kind
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


@contextmanager
def running(application: Starlette) -> Iterator[int]:
    """The port of an application while the block runs, which then ends in peace."""
    listening = listen("127.0.0.1", 0)
    server = server_of(application)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes about."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
