"""The live page's server under many, slow and silent readers: the page made once, memory bounded, nobody waits for them."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from robustq.jobs.report import server
from robustq.jobs.store.connection import Store
from robustq.jobs.web.server_limits import SLICE_BYTES, Patient, Slices, Together
from tests.helpers.fake_sweep import fill
from tests.helpers.html_reading import TOKEN, running, served
from tests.helpers.served import is_closed, until

READERS = 500
PAGE = bytes(range(256)) * 20_000  # 5,120,000 bytes
ASKED = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"


@contextmanager
def paged() -> Iterator[int]:
    """The port of a server of that page."""

    async def whole(request: Request) -> Response:
        return Slices(PAGE, media_type="text/html")

    app = Starlette(routes=[Route("/", whole)])
    with running(uvicorn.Config(app, http=Patient, ws="none", log_level="error", lifespan="off")) as port:
        yield port


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of every connection are this process's."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 4 * READERS:
        pytest.skip(f"needs {4 * READERS} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 4 * READERS), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def connected(port: int, *, receives: int | None = None) -> socket.socket:
    """receives: bytes that this side's kernel takes unasked, about."""
    made = socket.socket()
    if receives is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    made.settimeout(30)
    made.connect(("127.0.0.1", port))
    return made


def ended_after(connection: socket.socket) -> float:
    """Seconds until the other side ends it."""
    start = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - start


@pytest.mark.slow
def test_of_500_readers_at_once_one_has_the_page_made(
    made_up: Store, many_files: None, monkeypatch: pytest.MonkeyPatch
):
    fill(made_up, {"strong": 1.0})
    made, threads = [], []
    make_page = server.make_page

    def counted(*args):
        made.append(1)
        time.sleep(1)  # a large store
        threads.append(threading.active_count())
        return make_page(*args)

    monkeypatch.setattr(server, "make_page", counted)

    async def read(port: int, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\n{ASKED}Connection: close\r\n\r\n".encode())
        found = await reader.read(-1)
        writer.close()
        return found

    async def all_read(port: int) -> list[bytes]:
        return await asyncio.gather(*[read(port, "/live" if k % 2 else "/") for k in range(READERS)])

    with served(Path(made_up.artifacts).parent / "results.db") as port:
        before = threading.active_count()
        found = asyncio.run(all_read(port))
        assert len(made) == 1 and max(threads) <= before + 3
        assert len({text.partition(b"\r\n\r\n")[2] for text in found}) == 2
        assert all(text.startswith(b"HTTP/1.1 200 ") and b"strong is the most robust model" in text for text in found)
        asyncio.run(read(port, "/"))
        assert len(made) == 1  # nothing has changed
        fill(made_up, {"newcomer": 2.0})
        assert b"newcomer is the most robust model" in asyncio.run(read(port, "/")) and len(made) == 2


@pytest.mark.slow
def test_what_fails_fails_for_all_and_is_tried_again():
    asked: list[str] = []

    def call(name: str) -> str:
        asked.append(name)
        time.sleep(0.1)
        if len(asked) == 1:
            raise ValueError(name)
        return name

    async def main() -> None:
        once = Together()
        first = await asyncio.gather(*[once(call, "a") for _ in range(5)], return_exceptions=True)
        assert [str(error) for error in first] == ["a"] * 5 and asked == ["a"]
        assert await asyncio.gather(once(call, "a"), once(call, "b"), once(call, "a")) == ["a", "b", "a"]
        assert sorted(asked) == ["a", "a", "b"] and not once.tasks
        left = asyncio.create_task(once(call, "a"))
        await asyncio.sleep(0.02)
        stays = asyncio.create_task(once(call, "a"))
        left.cancel()
        assert await stays == "a"  # who leaves takes it from nobody

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("given", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET"])
def test_a_request_that_does_not_end_is_ended(given: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patient, "asking", 0.4)
    with paged() as port, connected(port) as asking:
        asking.sendall(given)
        assert 0.2 < ended_after(asking) < 3


@pytest.mark.slow
def test_a_request_that_drips_is_ended_too(monkeypatch: pytest.MonkeyPatch):
    """Also the second one of a connection, and what it sends after its answer."""
    monkeypatch.setattr(Patient, "asking", 0.4)
    starts = (b"", b"GET / HTTP/1.1\r\nHost: l\r\n\r\n", b"GET / HTTP/1.1\r\nHost: l\r\nContent-Length: 999999\r\n\r\n")
    for start in starts:
        with paged() as port, connected(port) as asking:
            asking.sendall(start)
            taking = threading.Thread(target=ended_after, args=(asking,))
            taking.start()
            began = time.monotonic()
            with pytest.raises(OSError):  # a broken pipe, or a reset
                while time.monotonic() < began + 4:
                    asking.sendall(b"X")
                    time.sleep(0.05)
            assert 0.2 < time.monotonic() - began < 3
            taking.join()


@pytest.mark.slow
def test_who_does_not_read_is_shut_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patient, "taking", 0.5)
    with paged() as port, connected(port, receives=4096) as reading:
        reading.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reading.recv(100).startswith(b"HTTP/1.1 200 OK")
        time.sleep(1.5)
        taken = 0
        while part := reading.recv(65536):  # what the kernels held
            taken += len(part)
        assert taken < len(PAGE) / 2


@pytest.mark.slow
def test_who_reads_at_a_normal_pace_gets_the_whole(monkeypatch: pytest.MonkeyPatch):
    """Longer in all than a reader may take for a slice."""
    monkeypatch.setattr(Patient, "taking", 0.5)
    with paged() as port, connected(port, receives=SLICE_BYTES) as reading:
        reading.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found, start = b"", time.monotonic()
        while part := reading.recv(SLICE_BYTES):
            found += part
            time.sleep(0.02)
        assert found.partition(b"\r\n\r\n")[2] == PAGE and time.monotonic() - start > 1


def resident() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_readers_of_one_page_share_its_bytes(many_files: None):
    """200 who take nothing of 5 MB: a gigabyte, were each given its own."""
    with paged() as port:
        before = resident()
        readers = [connected(port, receives=4096) for _ in range(200)]
        for reading in readers:
            reading.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reading in readers:
            assert reading.recv(15) == b"HTTP/1.1 200 OK"
        assert resident() - before < 100e6
        for reading in readers:
            reading.close()


@pytest.mark.slow
def test_connections_that_are_too_many_are_closed_as_they_come(made_up: Store, monkeypatch: pytest.MonkeyPatch):
    """So that a process never runs out of files, of which asyncio writes a traceback each time."""
    monkeypatch.setattr(Patient, "most", 20)
    monkeypatch.setattr(Patient, "asking", 60.0)
    with served(Path(made_up.artifacts).parent / "results.db") as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        until(lambda: sum(map(is_closed, idle)) == 40)
        for each in idle:
            each.close()
