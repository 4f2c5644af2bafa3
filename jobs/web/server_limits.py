"""Limits of a server: on connections, on the time for requests to arrive, and for clients to take the answers."""

import asyncio
import socket
from collections.abc import Callable, Hashable
from typing import Any

import h11
import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

SLICE_BYTES = 2**16  # bytes of a page that wait for one reader; its kernel holds KERNEL more
KERNEL = 2**18
CONNECTIONS = 800  # at once; beyond them, 503: a process may have 1,024 files open
SPARE = 60  # more that are told so; beyond them, a connection is closed as it comes
ACCEPTED = 16  # connections taken up before those that came last are looked at: as many files are open for a moment
BACKLOG = 2048  # that wait in the system until they are taken up


class Patient(H11Protocol):
    """HTTP with an end to waiting, which uvicorn has between requests alone.

    asking: seconds from the first byte of a request, or from the connection, to its last.  taking: in which a reader
    has to take what is ready for it, SLICE_BYTES at most.  leaving: which an answer still has when the server ends.
    most: connections at once; asyncio writes a traceback for each that finds no file free.
    """

    asking, taking, leaving = 10.0, 20.0, 3.0
    most = CONNECTIONS + SPARE

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timers: dict[str, asyncio.TimerHandle] = {}
        # So that writing pauses until all is taken, and starts anew then.
        transport.set_write_buffer_limits(high=0)
        if (connection := transport.get_extra_info("socket")) is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        self.wait("asking", self.asking)
        if len(self.connections) > self.most:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.our_state is h11.SEND_RESPONSE or self.conn.our_state is h11.SEND_BODY:
            self.settle("asking")
        else:
            self.wait("asking", self.asking)  # from the first byte on: those that follow give no more time

    def pause_writing(self) -> None:
        super().pause_writing()
        self.wait("taking", self.taking)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.settle("taking")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for name in list(self.timers):
            self.settle(name)

    def shutdown(self) -> None:
        super().shutdown()
        self.wait("leaving", self.leaving)

    def wait(self, name: str, seconds: float) -> None:
        if name not in self.timers:
            self.timers[name] = self.loop.call_later(seconds, self.transport.abort)

    def settle(self, name: str) -> None:
        if (timer := self.timers.pop(name, None)) is not None:
            timer.cancel()


class Server(uvicorn.Server):
    """A server of a configuration with `limit_concurrency=CONNECTIONS, backlog=ACCEPTED`."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(BACKLOG)  # asyncio has shortened it to what it takes up at once


class Slices(Response):
    """An answer that is handed out in slices as they are taken: many readers of one page share its bytes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for place in range(0, max(len(body), 1), SLICE_BYTES):
            last = place + SLICE_BYTES >= len(body)
            await send(
                {"type": "http.response.body", "body": bytes(body[place : place + SLICE_BYTES]), "more_body": not last}
            )


class Together:
    """Calls in threads, each once at a time: who asks for what is being made waits for that, and takes no thread."""

    def __init__(self) -> None:
        self.tasks: dict[Hashable, asyncio.Task[Any]] = {}

    async def __call__(self, call: Callable[..., Any], *args: Hashable) -> Any:
        key = (call, *args)
        if key not in self.tasks:
            self.tasks[key] = asyncio.create_task(run_in_threadpool(call, *args))
            self.tasks[key].add_done_callback(lambda task: self.ended(key, task))
        return await asyncio.shield(self.tasks[key])

    def ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self.tasks[key]
        if not task.cancelled():
            task.exception()  # which nobody may be left to hear of
