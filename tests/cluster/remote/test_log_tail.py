"""A job's output is followed over a WebSocket, each letter once; where there is none, ever more seldom."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from robustq.cluster.remote import log_tail
from robustq.cluster.remote.ray_jobs_api import Cluster, CommandOutput
from robustq.jobs.errors import RunError
from tests.helpers.bounded import bounded

LINES = [f"line {n} with ä\n" for n in range(40)]
Tail = Callable[["Head", web.WebSocketResponse], Awaitable[None]]


class Head:
    """A dashboard with one job. tail: what its WebSocket sends; without one it answers 404."""

    def __init__(self, tail: Tail | None, states: list[str]):
        self.tail, self.states = tail, states
        self.fetched, self.tails, self.log = 0, 0, "".join(LINES)
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/api/version", self.version),
                web.get("/api/jobs/x", self.job),
                web.get("/api/jobs/x/logs", self.logs),
                web.get("/api/jobs/x/logs/tail", self.follow),
            ]
        )

    async def version(self, _: Any) -> web.Response:
        return web.json_response({"ray_version": "2.60.0"})

    async def job(self, _: Any) -> web.Response:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return web.json_response({"type": "SUBMISSION", "submission_id": "x", "status": state, "entrypoint": "x"})

    async def logs(self, _: Any) -> web.Response:
        self.fetched += 1
        return web.json_response({"logs": self.log})

    async def follow(self, request: web.Request) -> web.StreamResponse:
        self.tails += 1
        if self.tail is None:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self.tail(self, socket)
        return socket


@contextmanager
def served(head: Head) -> Iterator[Cluster]:
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]

    async def start() -> None:
        runner = web.AppRunner(head.app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port[0] = site._server.sockets[0].getsockname()[1]  # pyright: ignore
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        await runner.cleanup()

    stop = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(start()))
    thread.start()
    ready.wait()
    try:
        with bounded():
            yield Cluster(f"http://127.0.0.1:{port[0]}", insecure=True)
    finally:
        stop.set()
        thread.join()
        loop.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(log_tail, "sleep", found.append)
    monkeypatch.setattr(log_tail, "monotonic", lambda: 0.0)  # a fetch takes no time, however busy the machine is
    return found


async def send_all(head: Head, socket: web.WebSocketResponse) -> None:
    for start in range(0, len(LINES), 10):  # as Ray does
        await socket.send_str("".join(LINES[start : start + 10]))


def test_what_comes_is_handed_on_and_nothing_is_fetched(pauses):
    head, said = Head(send_all, ["PENDING", "SUCCEEDED"]), []
    with served(head) as cluster:
        assert cluster.follow("x", said.append) == "SUCCEEDED"
    assert "".join(said) == head.log and len(said) == 4
    assert (head.fetched, head.tails, pauses) == (0, 1, [])


def test_a_lost_connection_is_taken_up_where_it_was_lost(pauses):
    async def tail(head: Head, socket: web.WebSocketResponse) -> None:
        if head.tails < 3:
            await socket.send_str("".join(LINES[:7]) + LINES[7][:3] if head.tails == 1 else "".join(LINES[:5]))
            await socket.close(code=1011)
        else:
            await send_all(head, socket)

    head, said = Head(tail, ["RUNNING"] * 3 + ["FAILED"]), []
    with served(head) as cluster:
        assert cluster.follow("x", said.append) == "FAILED"
    assert "".join(said) == head.log and (head.fetched, head.tails) == (0, 3)
    assert pauses == [1.0, 1.5]


def test_what_had_ended_before_is_fetched_once():
    head, said = Head(send_all, ["STOPPED"]), []
    with served(head) as cluster:
        assert cluster.follow("x", said.append) == "STOPPED"
    assert "".join(said) == head.log and (head.fetched, head.tails) == (1, 0)


def test_without_a_websocket_the_log_is_fetched_ever_more_seldom(pauses, capsys: pytest.CaptureFixture[str]):
    head, said = Head(None, ["RUNNING"] * 14 + ["SUCCEEDED"]), []
    with served(head) as cluster:
        assert cluster.follow("x", said.append) == "SUCCEEDED"
    assert said == [head.log] and head.fetched == 14 and head.tails == 1
    assert capsys.readouterr().err == (
        "the cluster lets no WebSocket through (HTTP 404): its whole log is fetched now and then\n"
    )
    assert pauses == sorted(pauses) and pauses[-1] == log_tail.LONGEST_PAUSE


@pytest.mark.slow
def test_an_output_that_does_not_end_is_left_off():
    async def tail(head: Head, socket: web.WebSocketResponse) -> None:
        while True:
            await socket.send_str("x" * 1000)

    start = time.monotonic()
    with served(Head(tail, ["RUNNING"])) as cluster, pytest.raises(RunError, match="does not end: it was left off"):
        cluster.follow("x", CommandOutput(lambda text: None, 10_000).feed)
    assert time.monotonic() - start < 10  # not as long as the server goes on, which is for ever
