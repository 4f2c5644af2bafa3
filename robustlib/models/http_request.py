"""One request to a model's server, within limits of time and size, and to that server alone."""

import base64
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from robustlib.addresses import public

LONGEST = 10  # times the timeout that a whole request may take: a server that drips is silent for less each time


class RequestFailed(Exception):
    """A request that came to nothing. again: whether the next one may fare better."""

    def __init__(self, text: str, *, again: bool):
        super().__init__(text)
        self.again = again


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Hands redirects on as errors: urllib would send what was posted nowhere, and its headers to any host."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> None:
        return None

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class Deadline:
    """Ends a connection when its time is over, whatever it waits for: timeouts count from byte to byte."""

    def __init__(self, seconds: float):
        self.over, self.lock = False, threading.Lock()
        self.held: socket.socket | None = None
        self.timer = threading.Timer(seconds, self.cut)
        self.timer.daemon = True

    def __enter__(self) -> "Deadline":
        self.timer.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.timer.cancel()
        with self.lock:
            if self.held is not None:
                self.held.close()
                self.held = None

    def hold(self, connection: socket.socket) -> None:
        """Watch a connection that was made, by a second handle: TLS takes the first one away."""
        with self.lock:
            self.held = connection.dup()
        if self.over:
            self.cut()

    def cut(self) -> None:
        with self.lock:
            self.over = True
            if self.held is not None:
                with suppress(OSError):  # the other side was quicker
                    self.held.shutdown(socket.SHUT_RDWR)


class LimitedConnection(http.client.HTTPConnection):
    """A connection that its deadline knows from the start."""

    deadline: Deadline

    def connect(self) -> None:
        super().connect()
        self.deadline.hold(self.sock)


class LimitedTLSConnection(http.client.HTTPSConnection, LimitedConnection):
    """The same, watched before the first byte of TLS."""


def connection_factory(kind: type[LimitedConnection], deadline: Deadline) -> Any:
    """As urllib asks for connections."""

    def make(*args: Any, **options: Any) -> LimitedConnection:
        connection = kind(*args, **options)
        connection.deadline = deadline
        return connection

    return make


def authorization(url: str) -> tuple[str, dict[str, str]]:
    """An address without its name and password, and the header by which these are sent: urllib would take them for a
    part of the host's name.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # whose text repeats it
        raise RequestFailed("is no address", again=False) from None
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    words = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), {"Authorization": f"Basic {words}"}


class LimitedRequest(urllib.request.Request):
    """A request that knows its deadline."""

    def __init__(self, url: str, data: bytes, deadline: Deadline):
        place, header = authorization(url)
        super().__init__(place, data, {"Content-Type": "application/json", **header})
        self.deadline = deadline


class PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, req: Any) -> Any:
        return self.do_open(connection_factory(LimitedConnection, req.deadline), req)


class SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        context = self._context  # pyright: ignore[reportAttributeAccessIssue]
        return self.do_open(connection_factory(LimitedTLSConnection, req.deadline), req, context=context)


@lru_cache
def opener() -> urllib.request.OpenerDirector:
    """One for all requests, as urllib's own: with TLS it reads the certificates that are trusted."""
    return urllib.request.build_opener(NoRedirect, PlainHandler, SecureHandler)


def post(url: str, data: bytes, *, timeout: float, retries: int, backoff: float, most: int) -> bytes:
    """The body of the server's answer, JSON as a rule.

    timeout: seconds that the server may be silent; LONGEST times that for the whole.  most: bytes of an answer.
    Raises ValueError where it gives none, refuses, redirects, or gives more than that.
    """
    problem = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(backoff * 2 ** (attempt - 1))
        try:
            return post_once(url, data, timeout, most)
        except RequestFailed as error:
            if not error.again:
                raise ValueError(f"{public(url)} {error}") from error
            problem = str(error)
    raise ValueError(f"{public(url)} gave no answer in {retries + 1} tries: {problem}")


def post_once(url: str, data: bytes, timeout: float, most: int) -> bytes:
    """The answer to one request. Raises RequestFailed."""
    text = f"is still answering after {LONGEST * timeout:g} seconds: a larger timeout gives it longer"
    with Deadline(LONGEST * timeout) as deadline:
        try:
            body = read_answer(LimitedRequest(url, data, deadline), timeout, most)
        except http.client.InvalidURL:  # whose text repeats it
            raise RequestFailed(
                "is no address: a port is a number, and a space is written as %20", again=False
            ) from None
        except (OSError, http.client.HTTPException, RequestFailed) as error:
            if deadline.over:
                raise RequestFailed(text, again=False) from error
            if isinstance(error, RequestFailed):
                raise
            if isinstance(error, OSError):  # urllib's own errors, timeouts and broken connections are all of this kind
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            else:
                problem = f"{type(error).__name__}: {error}"
            raise RequestFailed(problem, again=True) from error
        if deadline.over:  # what was cut off may look like an end
            raise RequestFailed(text, again=False)
        return body


def read_answer(request: LimitedRequest, timeout: float, most: int) -> bytes:
    """The body of an answer with a status of success. Raises RequestFailed, and what urllib and http.client raise."""
    try:
        with opener().open(request, timeout=timeout) as answer:
            if (answer.length or 0) > most or len(body := answer.read(most + 1)) > most:
                raise RequestFailed(
                    f"answers with more than {most:,} bytes, and that is no row of scores an image", again=False
                )
            if answer.length:  # http.client says so only where it was asked for all
                raise http.client.IncompleteRead(body, answer.length)
            return body
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                raise RequestFailed(redirect_problem(request.full_url, error), again=False) from error
            said = " ".join(error.read(500).decode(errors="replace").split())[:200]
            problem = f"HTTP {error.code} {said}".strip()
        if error.code < 500:
            raise RequestFailed(f"refuses the images: {problem}", again=False) from error
        raise RequestFailed(problem, again=True) from error


def redirect_problem(url: str, error: urllib.error.HTTPError) -> str:
    """What to say of a redirect: where to, as that may be told."""
    try:
        target = public(urljoin(url, error.headers.get("Location", "")))[:200]
    except ValueError:
        target = "no address"
    return (
        f"redirects to {target!r} (HTTP {error.code}), and images are sent to no address but the one that was given: "
        "give that one, if it is the model's"
    )
