"""The access token of a server, part of its address: others who use this machine or network are not let in."""

import base64
import binascii
import hmac
import html
import os
import re
import secrets
from collections.abc import Callable
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from robustq.jobs.errors import SpecError

FIXED = "ROBUSTQ_UI_TOKEN"
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")  # as it may stand in an address and in a cookie
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CLOSED = "This page opens by the address that robustq ui printed when it was started, which ends in a token.\n"
REDIRECT_HTML = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>robustq</title>'
REDIRECT_HTML += '<meta http-equiv="refresh" content="0; url={place}"></head></html>\n'


def make_token() -> tuple[str, str]:
    """The token of this server, and how it is shown: a fixed one by its name alone, since its user knows it.

    Raises SpecError for a fixed one that others would guess, or that no address can hold.
    """
    fixed = os.environ.get(FIXED, "")
    if not fixed:
        made = new_token()
        return made, made
    return checked_token(fixed, FIXED), f"${FIXED}"


def new_token() -> str:
    return secrets.token_urlsafe(24)


def checked_token(given: str, where: str) -> str:
    """The token that was given. Raises SpecError, which does not repeat it, for one that cannot be used."""
    if not TOKEN.fullmatch(given):
        raise SpecError(
            f"{where}: expected 16 to 200 letters, digits, or of . _ ~ -, got {len(given)} characters: "
            'python -c "import secrets; print(secrets.token_urlsafe())" makes one; without it each start has its own'
        )
    return given


Refuse = Callable[[Request, int, str], Response]  # of a request: by status and line


def plainly(request: Request, status: int, line: str) -> Response:
    """The line as text."""
    return PlainTextResponse(line, status, HEADERS)


class Door:
    """Lets in requests with the token: in a cookie, as a bearer's or a password, or in the address.

    A page's address leads to the same one without the token, and gives the cookie: so the token stays in no history and
    on no screen. Any other request is answered where it is: a redirect would lose its body.
    closed: what others are told, by `refuse`.  free: paths that are open to all.
    """

    def __init__(
        self, app: ASGIApp, token: str, *, closed: str = CLOSED, free: tuple[str, ...] = (), refuse: Refuse = plainly
    ):
        self.app, self.token, self.closed, self.free, self.refuse = app, token, closed, free, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        name = f"robustq-{port_of(request)}"  # cookies know no ports, and a user may have several pages open
        in_address = self.fits(request.query_params.get("token", ""))
        said = credentials(request.headers.get("authorization", ""))
        if in_address and request.method in ("GET", "HEAD"):
            await self.welcome(request, name)(scope, receive, send)
        elif in_address or self.fits(request.cookies.get(name, "")) or self.fits(said):
            await self.app(scope, receive, send)
        else:
            await self.refuse(request, 403, self.closed)(scope, receive, send)

    def fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def welcome(self, request: Request, name: str) -> Response:
        """The way on, with the cookie."""
        rest = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        last = quote(request.scope["path"].rpartition("/")[2], safe=":")
        place = f"./{last}" + (f"?{urlencode(rest)}" if rest else "")
        if request.headers.get("sec-fetch-site") == "cross-site":
            # Browsers send no strict cookie along a redirect that began on another site, such as a terminal in a page.
            answer: Response = HTMLResponse(REDIRECT_HTML.format(place=html.escape(place)), headers=HEADERS)
        else:
            answer = RedirectResponse(place, 303, HEADERS)
        answer.set_cookie(name, self.token, httponly=True, samesite="strict", path="/")
        return answer


def port_of(request: Request) -> int:
    """The port that a client asked for, as its Host header says; that of the server where it says none that exists."""
    try:
        return request.url.port or 80
    except ValueError:
        return (request.scope.get("server") or ("", None))[1] or 80


def credentials(authorization: str) -> str:
    """What an Authorization header brings: a bearer's token, or the password of basic authentication; empty for others.

    RFC 9110, section 11: the scheme in letters of either case, then spaces. Without one nothing is brought.
    """
    scheme, _, words = authorization.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return words.lstrip(" ")
        case "basic":
            return password(words.lstrip(" "))
    return ""


def password(words: str) -> str:
    """The password of HTTP's basic authentication, empty where there is none."""
    try:
        return base64.b64decode(words, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
