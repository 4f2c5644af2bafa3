"""The pace of work: the seconds that a unit of estimated cost takes, learnt from what the store holds."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from robustq.jobs.store.schema import job, result

LATEST = 2000  # results that are learnt from
MOST = 15  # of a group: those recorded last, since machines change
WHOLE_SECONDS = 1.0  # from which on a result counts fully: short ones tell of what comes beside the work
# What jobs are alike in, from the finest to what they need at least; and how many results a calibration of the job's
# own model and batch is worth beside them. Costs compare within a network; between networks only for want of better.
ALIKE: tuple[tuple[tuple[str, ...], float], ...] = (
    (("kind", "attack", "norm", "eps", "arch", "defence", "dataset"), 0.5),
    (("kind", "attack", "norm", "arch", "defence", "dataset"), 1.0),
    (("kind", "attack", "arch"), 2.0),
    (("kind", "arch"), 4.0),
)
FOR_WANT_OF_BETTER: tuple[tuple[str, ...], ...] = (("arch",), ("kind", "attack"), ("kind",), ())
COLUMNS = tuple(job.c[name] for name in ALIKE[0][0])
Group = tuple[Any, ...]


def group_of(about: Any, names: tuple[str, ...]) -> Group:
    """What of a job counts in a group. about: its columns by name, or an object with them."""
    values = (about[name] for name in names)
    return (names, *("eval" if value == "shard" else value for value in values))


@dataclass
class Pace:
    """Seconds that a unit of cost took, by groups of jobs that are alike, as logarithms with weights."""

    known: dict[Group, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, about: Any, cost: float, seconds: float, weight: float) -> None:
        """One more result; those that are told first count, where there are many."""
        if cost <= 0 or seconds <= 0 or weight <= 0:
            return
        for names in (*(names for names, _ in ALIKE), *FOR_WANT_OF_BETTER):
            rows = self.known[group_of(about, names)]
            if len(rows) < MOST:
                rows.append((math.log(seconds / cost), weight))

    def seconds(self, about: Any, cost: float, calibrated: float | None = None) -> float | None:
        """What a job is expected to take; None where nothing is known.

        calibrated: what a calibration says, in seconds: it counts the less, the more is known of jobs like this one.
        """
        if cost <= 0:
            return 0.0 if calibrated is None else calibrated
        for names, worth in ALIKE:
            if rows := self.known.get(group_of(about, names)):
                learnt = weighted_median(rows)
                if calibrated is None or calibrated <= 0:
                    return cost * math.exp(learnt)
                n = sum(weight for _, weight in rows)
                return cost * math.exp((n * learnt + worth * math.log(calibrated / cost)) / (n + worth))
        if calibrated is not None:
            return calibrated
        for names in FOR_WANT_OF_BETTER:
            if rows := self.known.get(group_of(about, names)):
                return cost * math.exp(weighted_median(rows))
        return None


def weighted_median(rows: Iterable[tuple[float, float]]) -> float:
    """The value below and above which lies half of the weight; of two such values the mean."""
    ordered = sorted(rows)
    half, below = sum(weight for _, weight in ordered) / 2, 0.0
    for i, (value, weight) in enumerate(ordered):
        below += weight
        if math.isclose(below, half) and i + 1 < len(ordered):
            return (value + ordered[i + 1][0]) / 2
        if below > half:
            return value
    return ordered[-1][0]


def learnt_pace(db: Connection, device: str) -> Pace:
    """What the store knows of a device: its name as rows have it, or the beginning of that.

    Shards count as what they are parts of; worst cases and what was split cost nothing of their own.
    """
    query = select(*COLUMNS, job.c.cost, result.c.seconds).join(job, job.c.id == result.c.job_id)
    chosen = result.c.device.startswith(device, autoescape=True) & (job.c.cost > 0)
    chosen &= job.c.kind.in_(("train", "eval", "shard"))
    pace = Pace()
    for row in db.execute(query.where(chosen).order_by(result.c.job_id.desc()).limit(LATEST)).mappings():
        pace.learn(row, row["cost"], row["seconds"], min(1.0, row["seconds"] / WHOLE_SECONDS))
    return pace
