"""Connections to models' servers: kept and used again, each process with its own, and ended when their time is over."""

import base64
import os
import re
import socket
import ssl
import threading
import urllib.request
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

KEPT = 16  # connections to a server, so that many threads may ask at once
ODD = re.compile(r"[\s\x00-\x1f\x7f]")


class RequestFailed(Exception):
    """A request that came to nothing. again: whether the next one may fare better.  pause: seconds for which the server
    wants to be left alone, if it said so.  refused: whether it does not take the body.
    """

    def __init__(self, text: str, *, again: bool, pause: float = 0.0, refused: bool = False):
        super().__init__(text)
        self.again, self.pause, self.refused = again, pause, refused


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
