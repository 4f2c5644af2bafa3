"""One request to a model's server, within limits of time and size, and to that server alone.

A batch costs no handshake, since connections are kept. Where a server asks for a pause, it gets it.
"""

import http.client
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, ProtocolError

from robustlib.addresses import public
from robustlib.models.http_connections import (
    Deadline,
    RequestFailed,
    authorization,
    connections,
    forget_connections,
)
from robustlib.number_text import counted, in_seconds

LOGGER = logging.getLogger("robustq")
LONGEST = 10  # times the timeout that a whole request may take, and a pause: a server that drips is silent for less
BUSY = (429, 503)  # what a server answers that will be free again, and may say when
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
POOL = re.compile(r"^\w+\(host=.*?\): ")  # how urllib3's messages begin


class Refused(ValueError):
    """The server does not take the body: an answer of 4xx, and none that says that it is busy."""


class Answer(NamedTuple):
    """body: JSON as a rule.  accepts: media types of bodies that the server takes, if it says so by Accept-Post."""

    body: bytes
    accepts: tuple[str, ...]


def post(url: str, data: bytes, kind: str, *, timeout: float, retries: int, backoff: float, most: int) -> Answer:
    """The server's answer to a body.

    kind: media type of the body.
    timeout: seconds that the server may be silent; LONGEST times that for the whole, and for a pause that it asks for.
    most: bytes of an answer.  Raises ValueError where it gives none, redirects, or gives more than that, and Refused.
    """
    problem, pause = "", 0.0
    for attempt in range(retries + 1):
        if attempt:
            pause = max(pause, backoff * 2 ** (attempt - 1))
            LOGGER.info("%s %s: asked again in %g seconds", public(url), problem, pause)
            time.sleep(pause)
        try:
            return post_once(url, data, kind, timeout, most)
        except RequestFailed as error:
            if error.pause > LONGEST * timeout:
                asked = f"asks to be left alone for {error.pause:.0f} seconds, longer than {LONGEST * timeout:g}"
                raise ValueError(f"{public(url)} {asked}: a larger timeout waits for it ({error})") from error
            if not error.again:
                raise (Refused if error.refused else ValueError)(f"{public(url)} {error}") from error
            problem, pause = str(error), error.pause
    raise ValueError(f"{public(url)} gave no answer in {counted(retries + 1, 'try', 'tries')}: {problem}")


def post_once(url: str, data: bytes, kind: str, timeout: float, most: int) -> Answer:
    """The answer to one request. Raises RequestFailed."""
    text = f"is still answering after {in_seconds(LONGEST * timeout)}: a larger timeout gives it longer"
    place, header = authorization(url)
    header["Content-Type"] = kind
    with Deadline(LONGEST * timeout) as deadline:
        try:
            try:
                answer = read_answer(place, data, header, timeout, most)
            except ProtocolError as error:
                if deadline.over or not deadline.reused or not any(isinstance(arg, CLOSED) for arg in error.args):
                    raise
                # A connection that was kept was closed meanwhile, which is no failure of the server's.
                forget_connections(place)
                answer = read_answer(place, data, header, timeout, most)
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
        return answer


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
    how: dict[str, Any] = {"redirect": False, "retries": False, "preload_content": False, "decode_content": False}
    pools = connections(parts.scheme, parts.hostname or "")
    answer = pools.urlopen("POST", place, body=data, headers=header, timeout=timeout, **how)
    try:
        yield answer
        ended = not answer.length_remaining and answer.read(1) == b""
    except BaseException:
        answer.close()
        raise
    if not ended:
        answer.close()
    answer.release_conn()


def read_answer(place: str, data: bytes, header: dict[str, str], timeout: float, most: int) -> Answer:
    """An answer with a status of success. Raises RequestFailed, and what urllib3 raises."""
    with asked(place, data, header, timeout) as answer:
        if answer.status < 300:
            if (answer.length_remaining or 0) > most or len(body := answer.read(most + 1)) > most:
                raise RequestFailed(
                    f"answers with more than {most:,} bytes, and that is no row of scores an image", again=False
                )
            if answer.length_remaining:  # urllib3 says so only where it was asked for all
                raise http.client.IncompleteRead(body, answer.length_remaining)
            return Answer(body, media_types(answer.headers.get("Accept-Post", "")))
        if answer.status < 400:
            raise RequestFailed(redirect_problem(place, answer), again=False)
        said = " ".join(answer.read(500).decode(errors="replace").split())[:200]
        problem = f"HTTP {answer.status} {said}".strip()
        if answer.status < 500 and answer.status not in BUSY:
            raise RequestFailed(f"refuses the images: {problem}", again=False, refused=True)
        raise RequestFailed(problem, again=True, pause=pause_of(answer))


def media_types(header: str) -> tuple[str, ...]:
    """The types that a list in a header names, without their parameters."""
    return tuple(part.partition(";")[0].strip().lower() for part in header.split(",") if part.strip())


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
