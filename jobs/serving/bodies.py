"""The bodies of requests, read within limits of bytes and time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from robustlib.number_text import in_seconds
from robustq.jobs.serving.refusals import CLOSE, Refused, busy


class Gone(Exception):
    """The client went away."""


class Room:
    """Memory that bodies may take, of all clients together; what is declared and does not come takes none."""

    def __init__(self, most: int):
        self.most, self.taken = most, 0

    @contextmanager
    def taking(self) -> Iterator["Share"]:
        share = Share(self)
        try:
            yield share
        finally:
            self.taken -= share.size


class Share:
    """What one request has of it. size: bytes."""

    def __init__(self, room: Room):
        self.room, self.size = room, 0

    def grow(self, size: int) -> None:
        """Take so many bytes in all. Raises Refused where there are none left."""
        more = max(0, size - self.size)
        if self.room.taken + more > self.room.most:
            raise busy("the bodies of other requests take all the memory there is for them: ask again later", 1)
        self.room.taken += more
        self.size += more


def media_type(request: Request) -> str:
    """The body's Content-Type, without parameters. Raises Refused for a body that is packed."""
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise Refused(415, f"expected a body as it is, got one in Content-Encoding {coding[:40]!r}")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, share: Share, *, most: int, seconds: float) -> bytes:
    """The whole body. most: bytes.  seconds: in which it has to arrive.  Raises Refused, and Gone."""
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise Refused(400, "expected a number as Content-Length")
    if len(declared) > 18 or int(declared) > most:
        raise too_long(most)
    try:
        async with asyncio.timeout(seconds):
            return await gather(request, share, most)
    except TimeoutError as error:
        raise Refused(408, f"expected the body within {in_seconds(seconds)}", CLOSE) from error


async def gather(request: Request, share: Share, most: int) -> bytes:
    """The body's parts as they come, however long it was said to be."""
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise too_long(most)
        share.grow(size)
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


def too_long(most: int) -> Refused:
    return Refused(413, f"expected a body of at most {most} bytes")
