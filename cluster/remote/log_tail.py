"""The output of a cluster's job as it comes: over the dashboard's WebSocket, each letter once.

Where something between lets no WebSocket through, the whole log is fetched now and then, which is all that Ray's Jobs
API has besides: the less often, the longer nothing came and the longer a fetch takes.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR
from time import monotonic, sleep
from typing import Any

POLL_SECONDS, LONGEST_PAUSE = 1.0, 30.0  # between two looks at first, and at most
SLOWER = 1.5  # by which a pause grows in which nothing came
WORTH = 10  # times as long as a fetch took, nobody fetches again
OPEN_SECONDS, HEARTBEAT_SECONDS = (
    60.0,
    30.0,
)  # until a WebSocket is open; between signs of life, where nothing is printed
MOST_MESSAGE = 2**24  # letters: Ray sends ten lines at once, or 20,000 letters and the rest of a line


class NoWebSocket(Exception):
    """The server, or what stands before it, answers a request for a WebSocket otherwise."""


class Follower:
    """Follows a job to its end.

    state: asks for its state.  log: fetches all that it has printed.  out: is told what comes, letter by letter once.
    ended: the states that are an end.  tell: hears once that there is no WebSocket.
    """

    def __init__(
        self,
        client: Any,
        number: str,
        *,
        state: Callable[[], str],
        log: Callable[[], str],
        out: Callable[[str], None],
        ended: tuple[str, ...],
        tell: Callable[[str], None],
    ):
        self.client, self.number, self.out, self.tell = client, number, out, tell
        self.state, self.log, self.ended = state, log, ended
        self.shown = 0  # letters
        self.pause = POLL_SECONDS

    def follow(self) -> str:
        """How it ended. Lost connections are tried again, as long as the cluster tells the job's state."""
        while (state := self.state()) not in self.ended:
            before = self.shown
            try:
                whole = asyncio.run(self.tail())
            except NoWebSocket as refused:
                self.tell(f"the cluster lets no WebSocket through ({refused}): its whole log is fetched now and then")
                return self.follow_by_fetching()
            if whole and (state := self.state()) in self.ended:
                return state
            self.wait(came=self.shown > before)
        self.show(self.log())
        return state

    def follow_by_fetching(self) -> str:
        while True:
            state, before, start = self.state(), self.shown, monotonic()
            self.show(self.log())  # after the state, so that it holds the end
            if state in self.ended:
                return state
            self.wait(came=self.shown > before, least=WORTH * (monotonic() - start))

    def wait(self, *, came: bool, least: float = 0.0) -> None:
        self.pause = POLL_SECONDS if came else min(SLOWER * self.pause, LONGEST_PAUSE)
        sleep(min(max(self.pause, least), LONGEST_PAUSE))

    def show(self, text: str) -> None:
        """What of the whole log was not shown yet."""
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        if new:
            self.out(new)

    async def tail(self) -> bool:
        """Hand on what comes until the server closes; whether that was a proper end. Each connection begins anew."""
        import aiohttp

        client, left = self.client, self.shown
        about: dict[str, Any] = {"cookies": client._cookies, "headers": client._headers}
        tls = {} if client._ssl_context is None else {"ssl": client._ssl_context}
        how: dict[str, Any] = {"heartbeat": HEARTBEAT_SECONDS, "max_msg_size": MOST_MESSAGE, **tls}
        try:
            async with aiohttp.ClientSession(**about) as session:
                place = f"{client._address}/api/jobs/{self.number}/logs/tail"
                async with await asyncio.wait_for(session.ws_connect(place, **how), OPEN_SECONDS) as socket:
                    try:
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                skipped = min(left, len(message.data))
                                left -= skipped
                                self.shown += len(message.data) - skipped
                                if skipped < len(message.data):
                                    self.out(message.data[skipped:])
                    except BaseException:
                        hang_up(socket)
                        raise
                    return socket.close_code == aiohttp.WSCloseCode.OK
        except aiohttp.WSServerHandshakeError as error:
            raise NoWebSocket(f"HTTP {error.status}") from error
        except (aiohttp.ClientError, TimeoutError, OSError):  # the state, which is asked for next, tells what is wrong
            return False


def hang_up(socket: Any) -> None:
    """End a connection at once. A proper end waits for the server's, as long as messages come: for one that never stops
    sending, for ever.
    """
    with suppress(OSError):  # it has ended meanwhile
        if (own := socket.get_extra_info("socket")) is not None:
            own.shutdown(SHUT_RDWR)
