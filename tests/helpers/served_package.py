"""A package's application with its page, and one whose certificates and signals are known beforehand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from starlette.applications import Starlette

from robustlib.packages.manifest import open_package
from robustq.jobs.packages.card import Flagged, Monitoring, SignalRate
from robustq.jobs.serving.answers import ABSTAINED, Answer, Certificate
from robustq.jobs.serving.application import make_application
from robustq.jobs.serving.facts import facts_of
from robustq.jobs.serving.page import page_routes
from robustq.jobs.serving.server import Asked, prepare
from robustq.jobs.serving.settings import Settings

UNKNOWN = {"fooled": None, "missed": None, "note": ""}
MONITORING = Monitoring(
    sigma=0.1,
    copies=8,
    window=10,
    nearest=3,
    thresholds={"noise-disagreement": 0.5, "vote-margin": 0.1, "repeated-queries": 0.01},
    ranges={"mean": (0.1, 0.9)},
    rates=[
        SignalRate.model_validate({"signal": "out-of-range", "on": on, "flagged": flagged, **UNKNOWN})
        for on, flagged in (
            ("clean", Flagged(n=200, rate=0.02, low=0.008, high=0.05)),
            ("adaptive", Flagged(n=50, rate=0.0, low=0.0, high=0.071)),
        )
    ],
    note="",
)


class ByBrightness:
    """Votes for class 1 where an image is bright, abstains where it is grey, and fails where it is black.

    Bright ones are certified within 0.25 and not within 0.5.
    """

    def __init__(self, place: Path):
        facts = facts_of(open_package(place))
        self.image, self.classes, self.mode = facts.image, facts.classes, "brightness"

    def answer(self, images: np.ndarray) -> list[Answer]:
        return [self.one(float(image.mean())) for image in images]

    def one(self, brightness: float) -> Answer:
        if brightness < 0.2:
            raise RuntimeError("black")
        bright = brightness > 0.6
        votes = np.zeros(len(self.classes), np.float32)
        votes[1], votes[2] = (900, 100) if bright else (510, 490)
        holds = {0.5: False, 0.25: bright}
        return Answer(1 if bright else ABSTAINED, votes, "votes", Certificate(holds, 1000, 0.25, 0.001))


class Odd:
    """Raises a signal for each image that is all of one grey, as no copy with noise is."""

    def look(
        self, client: str, images: np.ndarray, answers: list[Answer], *, request: str = ""
    ) -> list[tuple[str, ...]]:
        return [("out-of-range",) if image.min() == image.max() else () for image in images]

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """It holds nothing."""


def program_application(place: Path, token: str | None = None) -> Starlette:
    ready = prepare(Asked(place, token=token))
    ready.listening.close()
    return ready.application


def brightness_application(place: Path) -> Starlette:
    opened, settings = open_package(place), Settings()
    package = replace(opened, card=opened.card | {"monitoring": MONITORING.model_dump(mode="json")})
    engine = ByBrightness(place)
    routes = page_routes(package, settings, mode=engine.mode, votes=True)
    return make_application(engine, facts_of(package), settings, Odd(), routes=routes)
