"""The metrics of all replicas in one answer: whoever asks reaches one of them, which knows its own counts alone."""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from robustq.jobs.serving.metrics import CONTENT_TYPE
from robustq.jobs.web.access_token import HEADERS

PUT_UP_SECONDS = 2.0  # between two times that a replica tells its counts
FRESH_SECONDS = 10.0  # after which what a replica told is no longer given: it has ended


class Board:
    """What each replica told last: an actor of Ray's."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[float, bytes]] = {}

    def put_up(self, replica: str, text: bytes) -> dict[str, bytes]:
        """Hang up a replica's metrics; those of all that are alive."""
        now = time.monotonic()
        self.told[replica] = (now, text)
        self.told = {name: told for name, told in self.told.items() if now - told[0] < FRESH_SECONDS}
        return {name: text for name, (_, text) in self.told.items()}


class AllReplicas:
    """Answers `/metrics` with the counts of all replicas, each under its name.

    board: the actor.  replica: the name of this one.
    """

    def __init__(self, app: ASGIApp, board: Any, replica: str):
        self.app, self.board, self.replica = app, board, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", "/metrics"):
            await self.app(scope, receive, send)
            return
        own = scope["app"].state.service.metrics.text()
        texts = await self.board.put_up.remote(self.replica, own)
        await Response(merged(texts), headers=HEADERS | {"Content-Type": CONTENT_TYPE})(scope, receive, send)


class Given(Collector):
    def __init__(self, families: Iterable[Metric]):
        self.families = families

    def collect(self) -> Iterator[Metric]:
        yield from self.families


def merged(texts: dict[str, bytes]) -> bytes:
    """Metrics in Prometheus' text format, by replica, as one text in which each sample has its `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for family in text_string_to_metric_families(text.decode()):
            into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [sample._replace(labels={**sample.labels, "replica": replica}) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(Given(families.values()))
    return exposition.generate_latest(registry)


def keep_told(ray: Any, board: Any, replica: str, metrics: Any) -> None:
    """Tell the board what a replica has counted, from now on until its process ends."""

    def tell() -> None:
        while True:
            time.sleep(PUT_UP_SECONDS)
            try:
                ray.get(board.put_up.remote(replica, metrics.text()), timeout=FRESH_SECONDS)
            except ray.exceptions.RayError:  # the board starts anew, or Ray ends and this process with it
                continue

    threading.Thread(target=tell, name="robustq-metrics", daemon=True).start()
