"""The address that a server listens on, and the names by which it may be asked."""

import ipaddress
import re
import socket

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from robustq.jobs.errors import SpecError
from robustq.jobs.web.access_token import Refuse, plainly

NAMES = ("localhost", "127.0.0.1", "[::1]")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d+)?", re.IGNORECASE)


class OnlyHere:
    """Answers only requests that name this server: a page elsewhere can point a name of its own at 127.0.0.1.

    Such a name is no loopback name and no address, so those are let through, and nothing else.  command: what serves.
    refuse: answers the others.
    """

    def __init__(self, app: ASGIApp, *, anywhere: bool, command: str, refuse: Refuse = plainly):
        self.app, self.anywhere, self.command, self.refuse = app, anywhere, command, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not host_allowed(given, anywhere=self.anywhere):
                text = f"{self.command} answers to localhost, 127.0.0.1 and [::1] only\n"
                await self.refuse(Request(scope), 421, text)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def host_allowed(header: str, *, anywhere: bool) -> bool:
    """Whether a Host header is a loopback name; for a server that listens anywhere, an address or this host's too."""
    found = HOST.fullmatch(header.strip())
    if found is None:
        return False
    name = found[1].lower()
    if name in NAMES or is_loopback(name.strip("[]")):  # such as 127.0.0.2, which --host may say
        return True
    return anywhere and (
        is_address(name.strip("[]")) or name in (socket.gethostname().lower(), socket.getfqdn().lower())
    )


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server there."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on. Raises SpecError for a host that this machine is not, and a port in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SpecError(f"--host {host}: no such address ({error.strerror})") from error
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(2048)  # so that whoever was told the address waits, where the server is not up yet
    except OSError as error:
        found.close()
        raise SpecError(f"--port {port} of {host} cannot be used ({error.strerror}): name another one") from error
    return found
