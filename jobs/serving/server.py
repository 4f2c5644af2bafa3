"""A package served by this process: verified, listened for, and ended in peace."""

import asyncio
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import INT8, ONNX, Package, open_package
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.verify import verify
from robustq.jobs.serving.answers import Engine, Program
from robustq.jobs.serving.application import Service, as_json, id_of, make_application
from robustq.jobs.serving.facts import facts_of
from robustq.jobs.serving.page import page_routes
from robustq.jobs.serving.settings import Settings, Smoothing, Watching
from robustq.jobs.serving.watch import Watch
from robustq.jobs.serving.watching import make_watcher
from robustq.jobs.web.access_token import Door
from robustq.jobs.web.listening import OnlyHere, is_loopback, listen
from robustq.jobs.web.server_limits import ACCEPTED, CONNECTIONS, Patient, Server

COMMAND = "robustq serve"
CLOSED = f"Expected the token that {COMMAND} has, as in Authorization: Bearer TOKEN; a browser opens /?token=TOKEN"
LAST_SECONDS = 0.3  # in which who asks a server that ends is told so, before its connection is closed


@dataclass(frozen=True)
class Asked:
    """What is to be served, and how. digest: that the package must have, None for any.

    token: that clients need; None for none, which only this machine's get.  threads: the program computes with.
    smoothing: None for answers without certificates.  watching: None where nothing watches.
    """

    place: Path
    digest: str | None = None
    int8: bool = False
    threads: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    smoothing: Smoothing | None = None
    watching: Watching | None = None
    settings: Settings = field(default_factory=Settings)


def open_served(place: Path, digest: str | None = None) -> Package:
    """The package, verified as `robustq verify` does. Raises SpecError for one that is not what its card says."""
    found = verify(place, digest)
    if found.failed:
        raise SpecError(f"{place} is not what it ought to be: {'; '.join(one.line for one in found.failed)}")
    package = open_package(place)
    if package.digest != found.digest:
        raise SpecError(f"{place} has changed while it was read: start again")
    return package


def make_engine(package: Package, asked: Asked, device: str | None = None) -> Engine:
    """The package's program, or votes of its network on this device; on a GPU where there is one, if None.

    Raises SpecError where it has no program of that kind, and ValueError for votes that make no sense.
    """
    name = INT8 if asked.int8 else ONNX
    if name not in package.files:
        raise SpecError(f"{asked.place} has no {name}: `robustq package --int8` makes one with it")
    if asked.smoothing is None:
        return Program(package, name=name, threads=asked.threads)
    from robustq.jobs.serving.smoothed import Smoothed  # torch

    how = asked.smoothing
    options = {"sigma": how.sigma, "radii": how.radii, "alpha": how.alpha, "n": how.votes}
    return Smoothed(package, **options, name=name, threads=asked.threads, device=device)


def make_watch(package: Package, asked: Asked) -> Watch | None:
    """What looks at each request. Raises SpecError where the card has no signals that were measured."""
    if (how := asked.watching) is None:
        return None
    if how.log is not None:
        how.log.parent.mkdir(parents=True, exist_ok=True)
    name = INT8 if asked.int8 else ONNX
    about = {"every": how.every, "at_once": asked.settings.batch_size, "threads": asked.threads}
    found = make_watcher(package, name=name, log=how.log, **about)
    if found is None:
        raise SpecError(
            f"--watch: the card of {asked.place} has no signals that were measured: package the model again"
        )
    return found


def in_json(request: Request, status: int, line: str) -> Response:
    """A refusal at the door, as all others are told."""
    return as_json({"error": line.rstrip(), "request": id_of(request)}, request, status)


def doors(host: str, token: str | None) -> list[Middleware]:
    """What requests pass first: on loopback a name of this machine, elsewhere the token."""
    found = [Middleware(OnlyHere, anywhere=False, command=COMMAND, refuse=in_json)] if is_loopback(host) else []
    if token is not None:
        found.append(Middleware(Door, token=token, closed=CLOSED, free=("/health",), refuse=in_json))
    return found


class Calm(Patient):
    """Connections whose requests may take as long as the model does; their bodies have a limit of their own."""

    asking = 30.0


class Draining(Server):
    """A server that at its end answers what it accepted, and tells everybody else to go elsewhere."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.stop_taking()
        until = time.monotonic() + LAST_SECONDS
        while not self.force_exit and (not self.service.idle or time.monotonic() < until):
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


def server_of(application: Starlette) -> Draining:
    config = uvicorn.Config(
        application,
        http=Calm,
        ws="none",
        log_level="error",  # a request that is no HTTP is its sender's affair
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is who is connected, whatever a header says
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        backlog=ACCEPTED,
        timeout_keep_alive=30,
    )
    return Draining(config, application.state.service)


@dataclass
class Ready:
    """A server that listens, and answers as soon as it runs. port: that it listens on."""

    package: Package
    application: Starlette
    listening: socket.socket

    @property
    def service(self) -> Service:
        return self.application.state.service

    @property
    def port(self) -> int:
        return self.listening.getsockname()[1]

    def run(self) -> None:
        """Serve until interrupted or terminated, which is the proper end."""
        warnings.filterwarnings("ignore", module="PIL")  # of what clients send
        with ended_by_signals():
            server_of(self.application).run(sockets=[self.listening])


def prepare(asked: Asked, *, device: str | None = None) -> Ready:
    """Everything before the first request. device: of votes, see `make_engine`.  Raises SpecError for what cannot be
    served.
    """
    if asked.token is None and not is_loopback(asked.host):
        raise SpecError(f"--host {asked.host} lets others on the network ask: expected a token for them")
    package = open_served(asked.place, asked.digest)
    return Ready(package, application_of(package, asked, device=device), listen(asked.host, asked.port))


def application_of(
    package: Package, asked: Asked, inside: Sequence[Middleware] = (), *, device: str | None = None
) -> Starlette:
    """What answers for a package, with its page. Raises SpecError for what cannot be served.

    inside: what requests pass that were let in.  device: of votes, see `make_engine`.
    """
    try:
        engine, facts = make_engine(package, asked, device), facts_of(package)
        routes = page_routes(package, asked.settings, mode=engine.mode, votes=not isinstance(engine, Program))
        watch = make_watch(package, asked)
    except SpecError:
        raise
    except (PackageError, ValueError) as error:
        raise SpecError(f"{asked.place}: {error}") from error
    passed = [*doors(asked.host, asked.token), *inside]
    return make_application(engine, facts, asked.settings, watch, routes=routes, doors=passed)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the block, as uvicorn sends them on when it has ended, and nothing else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
