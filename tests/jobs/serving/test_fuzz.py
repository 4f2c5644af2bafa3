"""2,000 bodies of all kinds of nonsense, and heads: refused in one line or answered, no traceback, no memory kept."""

import asyncio
import gc
import json
import random
import socket
import struct
import tracemalloc
import zlib
from collections import Counter
from typing import Any

import pytest

from robustq.jobs.serving.application import make_application
from robustq.jobs.serving.images import JPEG, JSON, NPY, PNG
from robustq.jobs.serving.settings import Settings
from tests.helpers.served import FACTS, Colours, ask, instances, npy, picture, running, some_images

BODIES, HEADS = 2000, 300
KINDS = (JSON, PNG, JPEG, *NPY)
X = some_images(2)
GOOD = {
    JSON: [instances(X / 255), b'{"instances": [[[[0.5]]]]}', b"[]", b'{"instances": {}}'],
    PNG: [picture(X[0]), picture(X[0], mode="P"), picture(X[0], mode="LA")],
    JPEG: [picture(X[0], "JPEG"), picture(X[0], "JPEG", progressive=True)],
    **{kind: [npy(X), npy(X[0] / 255), npy(X.astype(object), allow_pickle=True)] for kind in NPY},
}
WORDS = (
    b"[",
    b"{",
    b'"',
    b"1e999",
    b"-",
    b"NaN",
    b"null",
    b"\xff\xda",
    b"\x00" * 9,
    b"\x93NUMPY",
    b"(",
    b"'shape': (9,",
    b"\n",
)


def spoilt(body: bytes, draw: random.Random) -> bytes:
    """A body after a few changes: bits, pieces, lengths, words, and the checksums of a PNG put right again."""
    found = bytearray(body)
    for _ in range(draw.randint(1, 6)):
        place, size = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 9, 100))
        match draw.randrange(7):
            case 0:
                found[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del found[place : place + size]
            case 2:
                found[place:place] = draw.randbytes(size)
            case 3:
                found[place:place] = found[place : place + size] * draw.choice((2, 50))
            case 4:
                found[place : place + size] = draw.choice(WORDS)
            case 5:
                del found[place:]
            case 6:
                found[place : place + 4] = struct.pack(
                    draw.choice("<>") + "I", draw.choice((0, 2**31, 2**32 - 1, 70_000))
                )
    return checksummed(found) if draw.random() < 0.5 else bytes(found)


def checksummed(body: bytearray) -> bytes:
    """With the checksums of a PNG's chunks as they ought to be, so that a decoder comes to what is in them."""
    place = 8
    while body.startswith(b"\x89PNG") and place + 12 <= len(body):
        (size,) = struct.unpack_from(">I", body, place)
        if place + 12 + size > len(body):
            break
        struct.pack_into(">I", body, place + 8 + size, zlib.crc32(body[place + 4 : place + 8 + size]))
        place += 12 + size
    return bytes(body)


def bodies(seed: int, n: int) -> list[tuple[str, bytes]]:
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        kind = draw.choice(KINDS)
        of = kind if draw.random() < 0.9 else draw.choice(KINDS)  # also under another's name
        found.append((kind, spoilt(draw.choice(GOOD[of]), draw)))
    return found


async def asked(application: Any, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer, without a connection. What the application raises comes out."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not parts:
            await never.wait()
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers,
        "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 9), "root_path": "",
    }  # fmt: skip
    await application(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.slow
def test_nonsense_is_refused_in_one_line_and_keeps_no_memory(log: pytest.LogCaptureFixture):
    application = make_application(Colours(), FACTS, Settings(batch_seconds=0, request_images=8))
    statuses: Counter[int] = Counter()

    async def all_asked(cases: list[tuple[str, bytes]]) -> None:
        for number, (kind, body) in enumerate(cases):
            path = "/predict" if number % 2 else "/v1/models/colours:predict"
            status, said = await asked(application, path, kind, body)
            statuses[status] += 1
            assert status in (200, 400, 413, 415), (kind, body, said)
            assert said.count(b"\n") == 1 and b"Traceback" not in said
            found = json.loads(said)
            assert status == 200 or 10 < len(found["error"]) < 500, (kind, body, said)

    async def measured() -> tuple[int, int]:
        await all_asked(bodies(0, BODIES // 4))
        sizes = []
        for seed in (1, 2):  # after what is made once
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
            await all_asked(bodies(seed, 3 * BODIES // 8))
        gc.collect()
        return sizes[1] - sizes[0], tracemalloc.get_traced_memory()[0] - sizes[1]

    tracemalloc.start()
    try:
        grown = asyncio.run(measured())
    finally:
        tracemalloc.stop()
        application.state.service.close()
    assert sum(statuses.values()) == BODIES and min(statuses[200], statuses[400]) > 50
    assert max(grown) < 200_000, grown
    assert application.state.service.room.taken == 0 and not log.records


def heads(seed: int, n: int) -> list[bytes]:
    """Requests whose heads are wrong in some way, each with a body."""
    draw = random.Random(seed)
    body = npy(X)
    odd = [
        b"",
        b"-1",
        b"1e3",
        b"999999999999",
        b"0x10",
        b"5, 5",
        b"\xff",
        b"a" * 5000,
        b"chunked, x",
        b"gzip",
        b"[",
        b"a:b:c",
    ]
    names = [b"Content-Type", b"Content-Length", b"Host", b"Transfer-Encoding", b"Content-Encoding", b"Expect", b"X-Request-Id",
             b"Authorization", b"Cookie", b"Upgrade", b"Connection", b"Accept", b"Sec-Fetch-Site"]  # fmt: skip
    found = []
    for _ in range(n):
        lines = {b"Host": b"localhost", b"Content-Type": b"application/x-npy", b"Content-Length": b"%d" % len(body)}
        for _ in range(draw.randint(1, 3)):
            lines[draw.choice(names)] = draw.choice(odd)
        target = draw.choice(
            [b"/predict", b"/predict?layout=%ff", b"/v1/models/%2e%2e:predict", b"//", b"/card/../x", b"*"]
        )
        method = draw.choice([b"POST", b"POST", b"POST", b"GET", b"PUT", b"OPTIONS", b"BREW"])
        head = b"".join(b"%b: %b\r\n" % pair for pair in lines.items())
        found.append(method + b" " + target + b" HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n" + body)
    return found


def status_of(port: int, request: bytes) -> int | None:
    """None where the connection is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        try:
            connection.sendall(request)
            answer = connection.recv(65536)
        except OSError:
            return None
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split()[1]) if answer else None


@pytest.mark.slow
def test_wrong_heads_are_refused_and_the_server_lives_on(log: pytest.LogCaptureFixture):
    statuses: Counter[int | None] = Counter()
    settings = Settings(batch_seconds=0, body_seconds=0.2)
    with running(make_application(Colours(), FACTS, settings)) as port:
        for request in heads(7, HEADS):
            statuses[status_of(port, request)] += 1
        assert ask(port, "/predict", npy(X), NPY[0]).status == 200
    assert set(statuses) <= {None, 100, 200, 400, 403, 404, 405, 408, 413, 415, 421}, statuses
    assert (
        statuses[None] < HEADS / 10
        and statuses[200] > 5
        and statuses[400] > 20
        and statuses[404] > 20
        and not log.records
    )
