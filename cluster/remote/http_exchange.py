"""One request to a cluster's dashboard and its answer, within bounds of time and size, whoever answers there."""

import threading
import time
from typing import Any

from robustlib.number_text import in_seconds

CONNECT_SECONDS, SILENT_SECONDS = 10.0, 60.0  # to be let in; without a byte
BEGIN_SECONDS, SEND_SECONDS, ANSWER_SECONDS = (
    60.0,
    3600.0,
    600.0,
)  # until an answer begins, after an upload; until its end
MOST_BYTES, MOST_LOG_BYTES = 64 * 2**20, 2**30 + 2**20  # of an answer; of one that holds what a command printed
PIECE = 2**16


class Exchange(threading.Thread):
    """A request in a thread of its own, which nobody waits for once its time is over: a server may send its headers
    letter by letter, of which no timeout of a socket's knows.
    """

    def __init__(self, most_bytes: int, *words: Any, **given: Any):
        super().__init__(daemon=True)
        self.most_bytes, self.words, self.given = most_bytes, words, given
        self.begun, self.ended = threading.Event(), threading.Event()
        self.response: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        import requests

        try:
            timeout = (CONNECT_SECONDS, SILENT_SECONDS)
            with requests.request(*self.words, stream=True, timeout=timeout, **self.given) as response:
                self.begun.set()
                response._content = self.body(response)
                self.response = response
        except Exception as error:
            self.error = error
        finally:
            self.begun.set()
            self.ended.set()

    def body(self, response: Any) -> bytes:
        found, end = bytearray(), time.monotonic() + ANSWER_SECONDS
        for piece in response.iter_content(PIECE):
            found += piece
            if len(found) > self.most_bytes:
                raise RuntimeError(f"its answer has more than {self.most_bytes >> 20} MB: it was left off")
            if time.monotonic() > end:
                raise RuntimeError(f"its answer took more than {ANSWER_SECONDS:g} seconds: it was left off")
        return bytes(found)

    def answer(self) -> Any:
        """The whole answer. Raises RuntimeError where it does not come, or is too large, and what `requests` raises."""
        self.start()
        patience = BEGIN_SECONDS if self.given.get("data") is None else SEND_SECONDS
        if not self.begun.wait(patience) or not self.ended.wait(ANSWER_SECONDS):
            raise RuntimeError(f"it gave no whole answer in {in_seconds(patience)}")
        if self.error is not None:
            raise self.error
        return self.response


def bounded(client: type[Any]) -> type[Any]:
    """Ray's client, whose requests are exchanges."""

    class Bounded(client):
        def _do_request(
            self, method: str, endpoint: str, *, data: Any = None, json_data: Any = None, **given: Any
        ) -> Any:
            most = MOST_LOG_BYTES if endpoint.endswith("/logs") else MOST_BYTES
            about = {"cookies": self._cookies, "headers": self._headers, "verify": self._verify}
            return Exchange(
                most, method, self._address + endpoint, data=data, json=json_data, **about, **given
            ).answer()

    return Bounded
