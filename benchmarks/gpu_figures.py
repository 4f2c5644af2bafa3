"""Figures of a run on a GPU: written one by one as JSON lines, set beside the peers' and beside the goals."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gpu_checks import Check

OURS = "robustq"


@dataclass(frozen=True)
class Figure:
    """A number and its unit. value: None where it was not measured; the note then says why.

    right: whether the number is what it must be, None where it need not be anything.  library: whose; empty for the
    device's own.  mode: of the search copy.
    """

    part: str
    task: str
    library: str
    value: float | None
    unit: str
    right: bool | None = None
    note: str = ""
    model: str = ""
    mode: str = ""
    device: str = ""


class Log:
    """Figures and checks, each written to a file the moment that it comes: what was measured stays."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.began = path.open("w"), time.perf_counter()
        self.figures: list[Figure] = []
        self.checks: list[Check] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.file.close()

    def write(self, found: Iterable[Figure | Check]) -> None:
        for one in found:
            (self.figures if isinstance(one, Figure) else self.checks).append(one)  # pyright: ignore[reportArgumentType]
            at = round(time.perf_counter() - self.began, 2)
            self.file.write(json.dumps(asdict(one) | {"at_seconds": at}) + "\n")
            self.file.flush()

    @property
    def wrong(self) -> bool:
        return any(one.right is False for one in (*self.figures, *self.checks))


Step = tuple[str, str, Callable[[], Iterable[Figure]]]  # task, library, what measures them


def measured(part: str, steps: Iterable[Step], seconds: float) -> Iterator[Figure]:
    """The steps' figures. A step that would begin after so many seconds, one whose library is not installed and one
    that fails are told as not measured; where ours fails, that is wrong. A step without a library measures the device.
    """
    start = time.perf_counter()
    for task, library, measure in steps:
        if time.perf_counter() - start > seconds:
            yield Figure(part, task, library, None, "", note=f"not measured: {seconds:.0f} s were over")
            continue
        try:
            yield from measure()
        except ImportError as error:
            yield Figure(part, task, library, None, "", note=f"not measured: {error}")
        except Exception as error:  # the other figures of a machine that is seldom at hand are wanted all the same
            right = False if library == OURS else None
            line = (str(error).strip().splitlines() or [""])[0]
            yield Figure(part, task, library, None, "", right, f"not measured: {type(error).__name__}: {line}")


def value_of(figures: list[Figure], task: str, unit: str, library: str = OURS) -> float | None:
    """The latest one measured."""
    return next((f.value for f in reversed(figures) if (f.task, f.unit, f.library) == (task, unit, library)), None)


def speedup(figures: list[Figure], task: str) -> float | None:
    """The seconds of the fastest peer over ours."""
    ours = value_of(figures, task, "s")
    peers = [f.value for f in figures if f.task == task and f.unit == "s" and f.library != OURS and f.value is not None]
    return None if ours is None or not peers else min(peers) / ours


def radii_over_one(figures: list[Figure]) -> float | None:
    curve, one = value_of(figures, "curve", "s"), value_of(figures, "pgd", "s")
    return None if curve is None or one is None else curve / one


@dataclass(frozen=True)
class Goal:
    """What a GPU is to reach. model: of that alone.  of: in the figures.  right: tasks whose numbers must be right."""

    name: str
    bound: float
    at_least: bool
    of: Callable[[list[Figure]], float | None]
    model: str = ""
    right: str = ""

    def said(self, figures: list[Figure], gpu: bool) -> tuple[str, float | None, str]:
        """Its name, the value, and whether it is reached."""
        mine = [f for f in figures if self.model in ("", f.model)]
        value = self.of(mine) if gpu else None
        if value is None:
            return self.name, None, "not measured" if gpu else "not measured: no GPU"
        if self.right:
            verdicts = [f.right for f in mine if f.task == self.right and f.library == OURS and f.right is not None]
            if not all(verdicts):
                return self.name, value, "missed: the numbers are wrong"
            if not verdicts:
                return self.name, value, "not measured: the numbers were compared with nothing"
        reached = value >= self.bound if self.at_least else value <= self.bound
        return self.name, value, "reached" if reached else "missed"


GOALS = (
    Goal("PGD-20, resnet18: at least 5 x the fastest peer", 5, True, lambda f: speedup(f, "pgd"), model="resnet18"),
    Goal("PGD-20, convnet3: at least 5 x the fastest peer", 5, True, lambda f: speedup(f, "pgd"), model="convnet3"),
    Goal("eight radii: at most 2 x one", 2, False, radii_over_one),
    Goal(
        "AutoAttack: at least 4 x, with its verdicts", 4, True, lambda f: speedup(f, "autoattack"), right="autoattack"
    ),
    Goal("DeepFool: at least 3 x, median within 1 %", 3, True, lambda f: speedup(f, "deepfool"), right="deepfool"),
    Goal("certificates: at least 150,000 votes/s", 150_000, True, lambda f: value_of(f, "certify", "votes/s")),
    Goal("warm-up: at most 2 s", 2, False, lambda f: value_of(f, "warm-up", "s")),
)


def table(figures: list[Figure]) -> list[list[object]]:
    """A row a figure; the ratio of ours to the fastest peer, where both were measured."""
    words = {True: "right", False: "WRONG", None: ""}
    rows: list[list[object]] = []
    for f in figures:
        ratio = speedup(figures, f.task) if f.library == OURS and f.unit == "s" and f.value is not None else None
        rows.append([f.task, f.library, f.value, f.unit, ratio, words[f.right], f.note])
    return rows
