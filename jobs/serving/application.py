"""The HTTP application of a served package: images in, answers out. Any server of ASGI carries it.

It knows no command and no Ray: `server.py` runs it in this process.
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from robustq.jobs.serving.answers import Engine
from robustq.jobs.serving.batching import Answered, Batcher
from robustq.jobs.serving.bodies import Gone, Room, media_type, read_body
from robustq.jobs.serving.facts import Facts
from robustq.jobs.serving.images import TYPES, most_bytes, read_images
from robustq.jobs.serving.metrics import CONTENT_TYPE, Measured, Metrics
from robustq.jobs.serving.refusals import Refused
from robustq.jobs.serving.replies import predictions, reply
from robustq.jobs.serving.settings import Settings
from robustq.jobs.serving.watch import Watch
from robustq.jobs.text.safe_text import brief
from robustq.jobs.web.access_token import HEADERS

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
QUICK_BYTES = (
    2**17
)  # a body that is decoded at once, in a millisecond; a longer one by a thread, while others are answered
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
GONE = 499  # nobody reads it; counted under this number, as by other servers
TAKES = {"Accept-Post": ", ".join(TYPES)}  # so that who asks again need not send JSON, which takes longest to read


class Service:
    """What answers requests: the engine behind its queue, and what is said of the package.

    Pages and other routes ask `answered`; who ends the server calls `stop_taking` and waits until it is `idle`.
    """

    def __init__(self, engine: Engine, facts: Facts, settings: Settings, watch: Watch | None):
        self.engine, self.facts, self.settings, self.watch = engine, facts, settings, watch
        self.metrics = Metrics()
        self.batcher = Batcher(engine, settings, self.metrics, watch)
        self.metrics.watch_queue(lambda: self.batcher.images)
        if watch is not None:
            self.metrics.watch_signals(watch.counters)
        self.room = Room(settings.all_bodies(facts.image))
        self.decoding = ThreadPoolExecutor(1, "robustq-decoding")

    @property
    def idle(self) -> bool:
        return self.batcher.idle

    def stop_taking(self) -> None:
        self.batcher.stop_taking()

    def close(self) -> None:
        self.batcher.close()
        self.decoding.shutdown()
        if self.watch is not None:
            self.watch.close()

    async def images(self, request: Request) -> np.ndarray:
        """The images in a request's body, (B, C, H, W). Raises Refused, and Gone."""
        kind = media_type(request)
        most = most_bytes(kind, self.facts, self.settings)
        layout = request.query_params.get("layout", "CHW")
        if layout not in ("CHW", "HWC"):
            raise Refused(400, f"expected ?layout=CHW or ?layout=HWC, got {brief(layout, 40)}")
        with self.room.taking() as share:
            body = await read_body(request, share, most=most, seconds=self.settings.body_seconds)
            how = (body, kind, self.facts, self.settings, layout)
            if len(body) <= QUICK_BYTES and not self.facts.resizes:
                return read_images(*how)
            return await asyncio.get_running_loop().run_in_executor(self.decoding, read_images, *how)

    async def answered(self, images: np.ndarray, request: Request) -> Answered:
        """The answers to images, (B, C, H, W). Raises Refused, and Gone where the client does not wait for them."""
        future = self.batcher.put(images, client_of(request), id_of(request))
        left = asyncio.ensure_future(ended(request))
        left.add_done_callback(lambda _: future.cancel())
        try:
            return await future
        except asyncio.CancelledError:
            if left.done() and not left.cancelled():
                raise Gone from None
            raise
        finally:
            left.cancel()

    async def predict(self, request: Request) -> Response:
        found = await self.answered(await self.images(request), request)
        return as_json(reply(found, self.facts, id_of(request)), request, headers=TAKES)

    async def predict_v1(self, request: Request) -> Response:
        found = await self.answered(await self.images(request), request)
        return as_json(predictions(found), request, headers=TAKES | {"X-Package-Digest": self.facts.digest})

    async def health(self, request: Request) -> Response:
        status = "ok" if self.batcher.taking else "stopping"
        said = {"status": status, "model": self.facts.name, "package": self.facts.digest, "engine": self.engine.mode}
        return as_json(said, request, 200 if status == "ok" else 503)

    async def card(self, request: Request) -> Response:
        wanted = request.headers.get("accept", "")
        as_text = request.scope["path"].endswith(".md") or "text/markdown" in wanted
        data, kind = (self.facts.text, "text/markdown") if as_text else (self.facts.card, "application/json")
        return Response(data, headers=HEADERS | {"Vary": "Accept"}, media_type=kind)

    async def text_of_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers=HEADERS | {"Content-Type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        return as_json({"models": [self.facts.name]}, request)

    async def model(self, request: Request) -> Response:
        return as_json({"name": self.facts.name, "ready": self.batcher.taking}, request)

    def routes(self) -> list[BaseRoute]:
        place = f"/v1/models/{self.facts.name}"
        return [
            Route("/predict", self.predict, methods=["POST"]),
            Route(f"{place}:predict", self.predict_v1, methods=["POST"]),
            Route("/v1/models", self.models),
            Route(place, self.model),
            Route("/health", self.health),
            *(Route(f"/card{ending}", self.card) for ending in ("", ".json", ".md")),
            Route("/metrics", self.text_of_metrics),
        ]


def make_application(
    engine: Engine,
    facts: Facts,
    settings: Settings | None = None,
    watch: Watch | None = None,
    *,
    routes: Sequence[BaseRoute] = (),
    doors: Sequence[Middleware] = (),
) -> Starlette:
    """The application that serves a package. Its Service is `application.state.service`.

    engine: answers images; from one thread, started with the first request.  watch: looks at each request.
    routes: more of them, such as a page.  doors: what requests must pass first, such as a token's.
    """
    service = Service(engine, facts, settings or Settings(), watch)

    @asynccontextmanager
    async def alive(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    application = Starlette(
        routes=[*service.routes(), *routes],
        middleware=[Middleware(Measured, metrics=service.metrics), *doors],
        exception_handlers={Refused: refused, HTTPException: unknown, Gone: gone, Exception: failed},
        lifespan=alive,
    )
    application.state.service = service
    return application


async def ended(request: Request) -> None:
    """Until the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(
    said: dict[str, Any], request: Request, status: int = 200, *, headers: Mapping[str, str] | None = None
) -> Response:
    """One line of JSON."""
    body = json.dumps(said, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    found = Response(body, status, headers, media_type="application/json")
    found.raw_headers += [*RAW_HEADERS, (b"x-request-id", id_of(request).encode())]
    return found


def id_of(request: Request) -> str:
    """The request's id: the client's own where it sends one that can be written down."""
    found = request.scope.get("robustq.request")
    if found is None:
        given = request.headers.get("x-request-id", "")
        found = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        request.scope["robustq.request"] = found
    return found


def client_of(request: Request) -> str:
    """Who asks: the address that the connection comes from."""
    return request.client.host if request.client else "unknown"


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return as_json(error.as_data() | {"request": id_of(request)}, request, error.status, headers=error.headers)


async def unknown(request: Request, error: Exception) -> Response:
    """A path that is none, or asked by another method."""
    assert isinstance(error, HTTPException)
    # Not `request.url`, which older versions of Starlette cannot make of any Host header.
    place, allowed = brief(request.scope["path"], 80), (error.headers or {}).get("Allow")
    if error.status_code == 404:
        known = [route.path for route in request.app.state.service.routes() if isinstance(route, Route)]
        line = f"there is no {place} here, expected one of: {', '.join(known)}"
    else:
        line = f"{place}: expected {allowed}, got {request.method[:20]}" if allowed else f"{place}: {error.detail}"
    said = {"error": line, "request": id_of(request)}
    return as_json(said, request, error.status_code, headers=error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Of what nobody thought of: the traceback goes to the server's log."""
    return await refused(request, Refused(500, "the server failed on this request: its log says why"))


async def gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)
