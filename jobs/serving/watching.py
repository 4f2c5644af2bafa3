"""The watching of requests: signals of the package's card, counted and written down. Monitoring, never a defence.

No answer depends on it, and no image is kept: of queries tiny grey pictures in memory, in the log nothing of them.
"""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import numpy as np

from robustlib.monitoring.image_statistics import out_of_range
from robustlib.monitoring.noise_votes import disagreement, noise_votes, vote_margin
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures
from robustlib.monitoring.signals import MARGIN, NOISE, RANGE, REPEATS, SIGNALS
from robustlib.packages.manifest import ONNX, Package
from robustlib.packages.onnx_session import OnnxSession
from robustq.jobs.packages.card import Monitoring, card_of
from robustq.jobs.serving.answers import Answer

LOG_BYTES, CLIENT_LETTERS = 10 * 2**20, 80
IMAGES, UNDER_NOISE, FLAGGED, CLIENTS = "images", "under-noise", "flagged", "clients"
Ask = Callable[[np.ndarray], np.ndarray]


class Strict(RotatingFileHandler):
    """Raises what went wrong, where logging would print it and lose the line."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class SignalLog:
    """A file of JSON lines, one for each image that was flagged; two files of this size at most, the older beside it
    with the ending `.1`. Writing raises OSError where that is impossible.
    """

    def __init__(self, place: Path, most_bytes: int = LOG_BYTES):
        self.handler = Strict(place, maxBytes=most_bytes, backupCount=1, encoding="utf-8", delay=True)

    def write(self, **line: object) -> None:
        """Raises OSError where it cannot be written."""
        text = json.dumps({"at": datetime.now(UTC).isoformat(timespec="milliseconds")} | line)
        self.handler.handle(logging.makeLogRecord({"msg": text}))

    def close(self) -> None:
        self.handler.close()


class Watcher:
    """What looks at answered images. It may be asked from several threads; its own passes run beside each other.

    ask: the package's program, which gives logits.  card: thresholds and how they were measured.
    every: of how many images one is shown under noise, which takes as many passes as the card says copies; none if 0.
    clients: how many are remembered, those that asked last; each has the latest queries of the card's window.
    at_once: images that the program is asked about at once, at most.
    seed: of the noise, for tests; from the operating system where there is none.
    """

    def __init__(
        self,
        ask: Ask,
        card: Monitoring,
        *,
        log: SignalLog | None = None,
        every: int = 1,
        clients: int = QueryWindows.clients,
        at_once: int = 32,
        seed: int | None = None,
    ):
        self.ask, self.card, self.log, self.every, self.at_once = ask, card, log, every, at_once
        self.windows = QueryWindows(card.window, card.nearest, clients)
        self.random = np.random.default_rng(seed)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def look(
        self, client: str, images: np.ndarray, answers: Sequence[Answer], *, request: str = ""
    ) -> list[tuple[str, ...]]:
        """The names of the signals that each image raises.

        client: whoever asked, as the server tells them apart.  images: float32 in [0, 1], shape (B, C, H, W).
        answers: those that were given.  request: its id, for the log.
        """
        limits = self.card.thresholds
        flags = {name: np.zeros(len(images), bool) for name in SIGNALS}
        flags[RANGE] = out_of_range(images, self.card.ranges)
        pictures = tiny_pictures(images)
        with self.lock:
            flags[REPEATS] = self.windows.distances(client, pictures) <= limits[REPEATS]
            chosen = self.chosen(len(images))
            random = self.random.spawn(1)[0] if len(chosen) else self.random
        for first in range(0, len(chosen), self.at_once):
            some = chosen[first : first + self.at_once]
            flags[NOISE][some], flags[MARGIN][some] = self.under_noise(images, answers, some, random)
        found = [tuple(name for name in SIGNALS if flags[name][i]) for i in range(len(images))]
        with self.lock:
            self.counts.update(name for names in found for name in names)
            self.counts[IMAGES] += len(images)
            self.counts[UNDER_NOISE] += len(chosen)
            self.counts[FLAGGED] += sum(map(bool, found))
            for i, names in enumerate(found):
                if names and self.log is not None:
                    told = {"request": request, "client": client[:CLIENT_LETTERS], "image": i}
                    self.log.write(**told, label=answers[i].label, signals=names)
        return found

    def chosen(self, n: int) -> np.ndarray:
        """Which of the next n images are shown under noise."""
        if not self.every:
            return np.arange(0)
        places = np.arange(n) + self.counts[IMAGES]
        return np.flatnonzero(places % self.every == 0)

    def under_noise(
        self, images: np.ndarray, answers: Sequence[Answer], chosen: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of the chosen images disagree with their noisy copies, and whose votes are close."""
        x = images[chosen]
        some = [answers[i] for i in chosen]
        own = np.stack([one.scores for one in some]) if all(one.kind == "logits" for one in some) else self.ask(x)
        votes = noise_votes(self.ask, x, sigma=self.card.sigma, copies=self.card.copies, random=random)
        limits = self.card.thresholds
        return disagreement(votes, own.argmax(axis=1)) > limits[NOISE], vote_margin(votes) < limits[MARGIN]

    def counters(self) -> dict[str, int]:
        """How often each signal was raised, by its name."""
        with self.lock:
            return {name: self.counts[name] for name in SIGNALS}

    def seen(self) -> dict[str, int]:
        """Images that were looked at, those of them under noise, those that raised any signal; clients remembered."""
        with self.lock:
            return {name: self.counts[name] for name in (IMAGES, UNDER_NOISE, FLAGGED)} | {
                CLIENTS: len(self.windows.known)
            }

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()


def make_watcher(
    package: Package, *, name: str = ONNX, log: Path | None = None, every: int = 1, at_once: int = 32, threads: int = 1
) -> Watcher | None:
    """What watches a package's requests; None where the card has no measured signals. Raises PackageError for a card
    that is none.

    name: the program that is asked under noise, whose signals were measured if it is the one in float32.
    log: a file of JSON lines.  every, at_once, threads: see `Watcher` and `OnnxSession`.
    """
    card = card_of(package).monitoring
    if card is None:
        return None
    session = OnnxSession(package.read(name), name, threads=threads)
    return Watcher(session, card, log=None if log is None else SignalLog(log), every=every, at_once=at_once)
