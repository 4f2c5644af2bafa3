"""Requests of all clients put together into batches, for one thread that asks the engine."""

import asyncio
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustlib.number_text import counted
from robustq.jobs.serving.answers import Answer, Engine
from robustq.jobs.serving.metrics import Metrics
from robustq.jobs.serving.refusals import Refused, busy, stopping
from robustq.jobs.serving.settings import Settings
from robustq.jobs.serving.watch import Watch

LOGGER = logging.getLogger("robustq")
FAILED = "the model failed on this request: the server's log says why"


@dataclass(frozen=True)
class Answered:
    """signals: raised by each image; None where nothing watches, or what watches failed."""

    answers: list[Answer]
    signals: list[tuple[str, ...]] | None


@dataclass(eq=False)
class Waiting:
    """A request's images, until they are answered. since: when it came, of a clock that only rises."""

    images: np.ndarray
    client: str
    request: str
    future: "asyncio.Future[Answered]"
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """A queue of images before an engine, which one thread asks.

    Batches are made when the engine is free: of what waits then, or comes within `batch_seconds` of the first, up to
    `batch_size` images. Requests stay whole where they fit; who has gone away is left out.
    """

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, watch: Watch | None = None):
        self.engine, self.settings, self.metrics, self.watch = engine, settings, metrics, watch
        self.most = settings.waiting_images(engine.image)
        self.queue: deque[Waiting] = deque()
        self.images = 0  # that wait
        self.at_work = 0  # requests that the engine has
        self.seconds = 0.01  # that an image takes, as the last batches took
        self.taking, self.closed = True, False
        self.condition = threading.Condition()
        self.thread: threading.Thread | None = None

    def put(self, images: np.ndarray, client: str, request: str) -> "asyncio.Future[Answered]":
        """What will have the answers to images, (B, C, H, W). Raises Refused where there is no room for them."""
        loop = asyncio.get_running_loop()
        item = Waiting(images, client, request, loop.create_future(), loop)
        with self.condition:
            if not self.taking:
                raise stopping()
            if self.images + len(images) > self.most:
                self.forget_gone()
            if self.images + len(images) > self.most:
                wait = counted(self.images, "image waits", "images wait")
                line = f"{wait}, and no more than {self.most} may: ask again later"
                raise busy(line, self.images * self.seconds)
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="robustq-engine", daemon=True)
                self.thread.start()
            self.queue.append(item)
            self.images += len(images)
            if len(self.queue) == 1 or self.images >= self.settings.batch_size:
                self.condition.notify()
        return item.future

    def forget_gone(self) -> None:
        """Give up the places of those who have gone away."""
        self.queue = deque(item for item in self.queue if not item.future.cancelled())
        self.images = sum(len(item.images) for item in self.queue)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted is answered."""
        with self.condition:
            return not self.queue and not self.at_work

    def stop_taking(self) -> None:
        """Accept nothing more; what was accepted is answered."""
        with self.condition:
            self.taking = False

    def close(self) -> None:
        """End the thread after its batch; what still waits is refused."""
        with self.condition:
            self.taking, self.closed = False, True
            self.condition.notify()
        if self.thread is not None:
            self.thread.join()

    def run(self) -> None:
        while (batch := self.next_batch()) is not None:
            if batch:
                self.work(batch)
            with self.condition:
                self.at_work = 0

    def next_batch(self) -> list[Waiting] | None:
        """The requests that are answered together next; None at the end."""
        with self.condition:
            while not self.queue and not self.closed:
                self.condition.wait()
            size = self.settings.batch_size
            until = self.queue[0].since + self.settings.batch_seconds if self.queue else 0.0
            while self.images < size and not self.closed and (left := until - time.monotonic()) > 0:
                self.condition.wait(left)
            if self.closed:
                while self.queue:
                    deliver([(self.queue.popleft(), stopping())])
                return None
            batch, n = [], 0
            while self.queue and (not batch or n + len(self.queue[0].images) <= size):
                item = self.queue.popleft()
                self.images -= len(item.images)
                if not item.future.cancelled():
                    batch.append(item)
                    n += len(item.images)
            self.at_work = len(batch)
            return batch

    def work(self, batch: list[Waiting]) -> None:
        start = time.monotonic()
        try:
            images = batch[0].images if len(batch) == 1 else np.concatenate([item.images for item in batch])
            answers = self.ask(images)
        except Exception:  # whatever an engine raises: the server lives on
            if len(batch) > 1:  # the others are not to suffer for the images of one
                for item in batch:
                    self.work([item])
                return
            LOGGER.exception("the engine failed on %s", counted(len(batch[0].images), "image"))
            deliver([(batch[0], Refused(500, FAILED))])
            return
        self.metrics.batch(len(images))
        done, first = [], 0
        for item in batch:
            mine = answers[first : first + len(item.images)]
            first += len(item.images)
            done.append((item, Answered(mine, self.signals(item, mine))))
        self.seconds = 0.8 * self.seconds + 0.2 * (time.monotonic() - start) / len(
            images
        )  # to watch takes its time too
        deliver(done)

    def ask(self, images: np.ndarray) -> list[Answer]:
        """Answers of the engine, at most `batch_size` images a call. Raises ValueError for numbers that are none."""
        size = self.settings.batch_size
        parts = [self.engine.answer(images[first : first + size]) for first in range(0, len(images), size)]
        answers = parts[0] if len(parts) == 1 else [answer for part in parts for answer in part]
        if len(answers) != len(images):
            raise ValueError(f"the engine gave {counted(len(answers), 'answer')} to {counted(len(images), 'image')}")
        if not np.isfinite([answer.scores for answer in answers]).all():
            raise ValueError("the engine gave scores that are no finite numbers")
        return answers

    def signals(self, item: Waiting, answers: list[Answer]) -> list[tuple[str, ...]] | None:
        if self.watch is None:
            return None
        try:
            return self.watch.look(item.client, item.images, answers, request=item.request)
        except Exception:  # to watch is no part of the answer
            LOGGER.exception("what watches requests failed on %s", counted(len(item.images), "image"))
            self.metrics.watch_failed()
            return None


def deliver(done: list[tuple[Waiting, Any]]) -> None:
    """Hand results to those who wait for them, one call for each event loop."""
    for loop in {id(item.loop): item.loop for item, _ in done}.values():
        mine = [(item.future, result) for item, result in done if item.loop is loop]
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(settle, mine)


def settle(done: list[tuple["asyncio.Future[Answered]", Any]]) -> None:
    for future, result in done:
        if future.done():  # its client has gone away
            continue
        if isinstance(result, Refused):
            future.set_exception(result)
        else:
            future.set_result(result)
