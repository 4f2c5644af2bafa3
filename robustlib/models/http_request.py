"""One request to a model's server, within limits of time and size, and to that server alone.

Connections are kept and used again: a batch costs no handshake. Where a server asks for a pause, it gets it.
"""

import base64
import http.client
import logging
import os
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, ProtocolError

from robustlib.addresses import public

LOGGER = logging.getLogger("robustq")
LONGEST = 10  # times the timeout that a whole request may take, and a pause: a server that drips is silent for less
KEPT = 16  # connections to a server, so that many threads may ask at once
BUSY = (429, 503)  # what a server answers that will be free again, and may say when
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
POOL = re.compile(r"^\w+\(host=.*?\): ")  # how urllib3's messages begin
ODD = re.compile(r"[\s\x00-\x1f\x7f]")


class RequestFailed(Exception):
    """A request that came to nothing. again: whether the next one may fare better.  pause: seconds for which the server
    wants to be left alone, if it said so.
    """

    def __init__(self, text: str, *, again: bool, pause: float = 0.0):
        super().__init__(text)
        self.again, self.pause = again, pause


class Deadline:
    """Ends a connection when its time is over, whatever it waits for: timeouts count from byte to byte.

    held: the connection in use.  reused: whether that had served a request before.
    """

    def __init__(self, seconds: float):
        self.over, self.reused, self.lock = False, False, threading.Lock()
        self.held: socket.socket | None = None
        self.timer = threading.Timer(seconds, self.cut)
        self.timer.daemon = True

    def __enter__(self) -> "Deadline":
        CURRENT.deadline = self
        self.timer.start()
        return self

    def __exit__(self, *error: Any) -> None:
        CURRENT.deadline = None
        self.timer.cancel()
        self.let_go()

    def let_go(self) -> None:
        with self.lock:
            if self.held is not None:
                self.held.close()
                self.held = None

    def hold(self, handle: socket.socket, *, reused: bool) -> None:
        """Watch a connection, by a handle of its own: http.client closes those of answers that end one."""
        self.let_go()
        with self.lock:
            self.held, self.reused = handle.dup(), reused
        if self.over:
            self.cut()

    def cut(self) -> None:
        with self.lock:
            self.over = True
            if self.held is not None:
                with suppress(OSError):  # the other side was quicker
                    self.held.shutdown(socket.SHUT_RDWR)


CURRENT = threading.local()  # whose `deadline` bounds the request that this thread makes


class Limited(HTTPConnection):
    """A connection that the deadline of each of its requests knows from the start."""

    handle: socket.socket | None = None  # a second one: TLS takes the first away

    def _new_conn(self) -> socket.socket:
        found = super()._new_conn()
        self.handle = found.dup()
        CURRENT.deadline.hold(self.handle, reused=False)
        return found

    def request(self, *args: Any, **options: Any) -> None:
        if self.handle is not None and getattr(self, "asked", False):
            CURRENT.deadline.hold(self.handle, reused=True)
        self.asked = True
        super().request(*args, **options)
        # A server that sends head and body apart holds back the second until the first is acknowledged, which on a kept
        # connection the system puts off for 40 ms.
        if hasattr(socket, "TCP_QUICKACK") and self.sock is not None:
            with suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def close(self) -> None:
        super().close()
        self.asked = False
        if self.handle is not None:
            self.handle.close()
            self.handle = None


class LimitedTLS(Limited, HTTPSConnection):
    """The same, watched before the first byte of TLS."""


class Pool(HTTPConnectionPool):
    ConnectionCls = Limited  # pyright: ignore[reportAssignmentType] (narrower than its protocol says)


class TLSPool(HTTPSConnectionPool):
    ConnectionCls = LimitedTLS  # pyright: ignore[reportAssignmentType]


def connections(scheme: str, host: str) -> urllib3.PoolManager:
    """The connections that are kept, of this process alone: a fork would talk into those of its parent."""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    return manager(os.getpid(), proxy)


def forget_connections(place: str) -> None:
    parts = urlsplit(place)
    connections(parts.scheme, parts.hostname or "").clear()


@lru_cache
def manager(process: int, proxy: str | None) -> urllib3.PoolManager:
    """With TLS it reads the certificates that are trusted, once."""
    options: dict[str, Any] = {"maxsize": KEPT, "ssl_context": ssl.create_default_context()}
    if proxy is None:
        found = urllib3.PoolManager(**options)
    else:
        place, header = authorization(proxy if "://" in proxy else f"http://{proxy}")
        words = {f"Proxy-{name}": value for name, value in header.items()}
        found = urllib3.ProxyManager(place, proxy_headers=words, **options)
    found.pool_classes_by_scheme = {"http": Pool, "https": TLSPool}
    return found


def authorization(url: str) -> tuple[str, dict[str, str]]:
    """An address without its name and password, and the header by which these are sent."""
    try:
        parts = urlsplit(url)
        sound = not ODD.search(url) and (parts.port is None or parts.port >= 0)
    except ValueError:  # whose text repeats it
        parts, sound = urlsplit(""), False
    if not sound:
        raise RequestFailed("is no address: a port is a number, and a space is written as %20", again=False)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    words = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {words}"}


def post(url: str, data: bytes, *, timeout: float, retries: int, backoff: float, most: int) -> bytes:
    """The body of the server's answer, JSON as a rule.

    timeout: seconds that the server may be silent; LONGEST times that for the whole, and for a pause that it asks for.
    most: bytes of an answer.  Raises ValueError where it gives none, refuses, redirects, or gives more than that.
    """
    problem, pause = "", 0.0
    for attempt in range(retries + 1):
        if attempt:
            pause = max(pause, backoff * 2 ** (attempt - 1))
            LOGGER.info("%s %s: asked again in %g seconds", public(url), problem, pause)
            time.sleep(pause)
        try:
            return post_once(url, data, timeout, most)
        except RequestFailed as error:
            if error.pause > LONGEST * timeout:
                asked = f"asks to be left alone for {error.pause:.0f} seconds, longer than {LONGEST * timeout:g}"
                raise ValueError(f"{public(url)} {asked}: a larger timeout waits for it ({error})") from error
            if not error.again:
                raise ValueError(f"{public(url)} {error}") from error
            problem, pause = str(error), error.pause
    raise ValueError(f"{public(url)} gave no answer in {retries + 1} tries: {problem}")


def post_once(url: str, data: bytes, timeout: float, most: int) -> bytes:
    """The answer to one request. Raises RequestFailed."""
    text = f"is still answering after {LONGEST * timeout:g} seconds: a larger timeout gives it longer"
    place, header = authorization(url)
    with Deadline(LONGEST * timeout) as deadline:
        try:
            try:
                body = read_answer(place, data, header, timeout, most)
            except ProtocolError as error:
                if deadline.over or not deadline.reused or not any(isinstance(arg, CLOSED) for arg in error.args):
                    raise
                # A connection that was kept was closed meanwhile, which is no failure of the server's.
                forget_connections(place)
                body = read_answer(place, data, header, timeout, most)
        except LocationValueError:  # whose text repeats it
            raise RequestFailed("is no address", again=False) from None
        except (HTTPError, OSError, http.client.HTTPException, RequestFailed) as error:
            if deadline.over:
                raise RequestFailed(text, again=False) from error
            if isinstance(error, RequestFailed):
                raise
            raise RequestFailed(problem_of(error), again=True) from error
        if deadline.over:  # what was cut off may look like an end
            raise RequestFailed(text, again=False)
        return body


def problem_of(error: Exception) -> str:
    """What went wrong with a connection, without the pool that it was of."""
    inner = next((arg for arg in error.args if isinstance(arg, http.client.HTTPException)), error)
    if isinstance(inner, http.client.HTTPException):
        return f"{type(inner).__name__}: {inner}"
    return POOL.sub("", str(error)) or type(error).__name__


@contextmanager
def asked(place: str, data: bytes, header: dict[str, str], timeout: float) -> Iterator[Any]:
    """An answer whose body is not read yet. Its connection is kept where that is read to its end."""
    parts = urlsplit(place)
    headers = {"Content-Type": "application/json", **header}
    how: dict[str, Any] = {"redirect": False, "retries": False, "preload_content": False, "decode_content": False}
    pools = connections(parts.scheme, parts.hostname or "")
    answer = pools.urlopen("POST", place, body=data, headers=headers, timeout=timeout, **how)
    try:
        yield answer
        ended = not answer.length_remaining and answer.read(1) == b""
    except BaseException:
        answer.close()
        raise
    if not ended:
        answer.close()
    answer.release_conn()


def read_answer(place: str, data: bytes, header: dict[str, str], timeout: float, most: int) -> bytes:
    """The body of an answer with a status of success. Raises RequestFailed, and what urllib3 raises."""
    with asked(place, data, header, timeout) as answer:
        if answer.status < 300:
            if (answer.length_remaining or 0) > most or len(body := answer.read(most + 1)) > most:
                raise RequestFailed(
                    f"answers with more than {most:,} bytes, and that is no row of scores an image", again=False
                )
            if answer.length_remaining:  # urllib3 says so only where it was asked for all
                raise http.client.IncompleteRead(body, answer.length_remaining)
            return body
        if answer.status < 400:
            raise RequestFailed(redirect_problem(place, answer), again=False)
        said = " ".join(answer.read(500).decode(errors="replace").split())[:200]
        problem = f"HTTP {answer.status} {said}".strip()
        if answer.status < 500 and answer.status not in BUSY:
            raise RequestFailed(f"refuses the images: {problem}", again=False)
        raise RequestFailed(problem, again=True, pause=pause_of(answer))


def pause_of(answer: Any) -> float:
    """Seconds that a busy server asks for, as a number or a date; 0 where it does not."""
    said = answer.headers.get("Retry-After") if answer.status in BUSY else None
    try:
        return 0.0 if said is None else urllib3.Retry().parse_retry_after(said)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


def redirect_problem(url: str, answer: Any) -> str:
    """What to say of a redirect: where to, as that may be told."""
    try:
        target = public(urljoin(url, answer.headers.get("Location", "")))[:200]
    except ValueError:
        target = "no address"
    return (
        f"redirects to {target!r} (HTTP {answer.status}), and images are sent to no address but the one that was "
        "given: give that one, if it is the model's"
    )
