"""The pace of work: the seconds that a unit of estimated cost takes, learnt from what the store holds."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.settings import EXPLAIN
from robustq.jobs.store.schema import job, result, sweep_job

LATEST = 2000  # results that are learnt from
MOST = 15  # of a group: those recorded last, since machines change
NO_CHANGE = 1.0  # results that it is worth, that a machine is as quick as it was
WHOLE_SECONDS = 1.0  # from which on a result counts fully: short ones tell of what comes beside the work
# What jobs are alike in, from the finest to what they need at least; and how many results a calibration of the job's
# own model and batch is worth beside them. Costs compare within a network; between networks only for want of better.
ALIKE: tuple[tuple[tuple[str, ...], float], ...] = (
    (("kind", "attack", "method", "norm", "arch", "defence", "dataset", "model", "eps"), 0.5),
    (("kind", "attack", "method", "norm", "arch", "defence", "dataset", "model"), 1.0),
    (("kind", "attack", "method", "arch"), 2.0),
    (("kind", "arch"), 4.0),
)
FAR = 20.0  # times the work of all that is known of other attacks: nothing is concluded, since what comes beside the
# work, such as the start of a process, counts much in a short job and little in a long one
SAME_ATTACK = 2  # of these groups, from the finest, are of one attack on one network and its data
FOR_WANT_OF_BETTER: tuple[tuple[str, ...], ...] = (("arch",), ("kind", "attack", "method"), ("kind",), ())
# A study's name for a model tells networks apart that rows do not: one with dropout at inference takes other passes.
MODEL = select(sa.func.min(sweep_job.c.model)).where(sweep_job.c.job_id == job.c.id).correlate(job).scalar_subquery()
# All explanations are one attack by its name; what comes beside the passes of one is much more than of another.
METHOD = sa.case((job.c.attack == EXPLAIN, job.c.spec["attack"]["params"]["method"].as_string()))
OF_A_JOB = tuple(job.c[name] for name in ALIKE[0][0] if name not in ("model", "method"))
COLUMNS = (*OF_A_JOB, MODEL.label("model"), METHOD.label("method"))
Group = tuple[Any, ...]


class Took(NamedTuple):
    """What a job took: its columns, its cost, its seconds, and how fully it counts, up to 1."""

    about: Any
    cost: float
    seconds: float
    weight: float = 1.0


def group_of(about: Any, names: tuple[str, ...]) -> Group:
    """What of a job counts in a group. about: its columns by name, or an object with them."""
    values = (about[name] for name in names)
    return (names, *("eval" if value == "shard" else value for value in values))


@dataclass
class Pace:
    """Seconds that a unit of cost took, by groups of jobs that are alike, as logarithms with weights."""

    known: dict[Group, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    largest: dict[Group, float] = field(default_factory=lambda: defaultdict(float))  # cost of a job, by group

    def learn(self, jobs: Iterable[Took], slower: float = 1.0) -> "Pace":
        """More results; those that are told first count, where there are many. slower: than they were, jobs are now."""
        for about, cost, seconds, weight in jobs:
            if cost <= 0 or seconds <= 0 or weight <= 0:
                continue
            for names in (*(names for names, _ in ALIKE), *FOR_WANT_OF_BETTER):
                group = group_of(about, names)
                if len(rows := self.known[group]) < MOST:
                    rows.append((math.log(slower * seconds / cost), weight))
                    self.largest[group] = max(self.largest[group], cost)
        return self

    def rows(self, about: Any, names: tuple[str, ...], one: float) -> list[tuple[float, float]]:
        """What is known of a group; nothing where a job of another attack that costs `one` is far beyond it."""
        group = group_of(about, names)
        far = "attack" not in names and one > FAR * self.largest.get(group, 0.0)
        return [] if far else self.known.get(group, [])

    def of_alike(self, about: Any, one: float, levels: int = len(ALIKE)) -> tuple[float, float, float] | None:
        """Of the finest group of jobs alike that has results: their median as a logarithm, their weight, and how many
        results a calibration is worth beside them; None where none has any.  one: the cost of such a job.
        levels: so many of the finest.
        """
        for names, worth in ALIKE[:levels]:
            if rows := self.rows(about, names, one):
                return weighted_median(rows), sum(weight for _, weight in rows), worth
        return None

    def seconds(
        self, about: Any, cost: float, calibrated: float | None = None, *, one: float | None = None
    ) -> float | None:
        """What a job is expected to take; None where nothing is known.

        one: the cost of the largest, where `cost` is that of several.  calibrated: what a calibration says, in seconds:
        it counts the less, the more is known of jobs like this one.
        """
        if cost <= 0:
            return 0.0 if calibrated is None else calibrated
        one = cost if one is None else one
        if (found := self.of_alike(about, one)) is not None:
            learnt, n, worth = found
            if calibrated is None or calibrated <= 0:
                return cost * math.exp(learnt)
            return cost * math.exp((n * learnt + worth * math.log(calibrated / cost)) / (n + worth))
        if calibrated is not None:
            return calibrated
        for names in FOR_WANT_OF_BETTER:
            if rows := self.rows(about, names, one):
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


def corrected(now: Sequence[Took], before: Sequence[Took]) -> Pace:
    """The pace of what was done just now, and of what was done before as it would be now: where jobs take longer than
    such jobs did, the machine has become slower for all of them. Few of them are weighed against no change.
    """
    known = Pace().learn(before)
    pairs = [
        (job, known.of_alike(job.about, job.cost, SAME_ATTACK))
        for job in now
        if job.cost > 0 and job.seconds > 0 and job.weight > 0
    ]
    ratios = [(math.log(job.seconds / job.cost) - found[0], job.weight) for job, found in pairs if found is not None]
    n = sum(weight for _, weight in ratios)
    slower = math.exp(weighted_median(ratios) * n / (n + NO_CHANGE)) if ratios else 1.0
    return Pace().learn(now).learn(before, slower)


def learnt_pace(db: Connection, device: str, *, since: float = math.inf, running: Sequence[Took] = ()) -> Pace:
    """What the store knows of a device: its name as rows have it, or the beginning of that.

    since: what was recorded from then on tells how quick the machine is now, and so does what is known of running jobs.
    Shards count as what they are parts of; worst cases and what was split cost nothing of their own.
    """
    checks = result.c.extra["check_seconds"].as_float()
    if db.dialect.name == "sqlite":  # which ends the statement at a NaN, that Python writes into JSON
        checks = sa.case((sa.func.json_valid(result.c.extra) == 1, checks))
    query = select(*COLUMNS, job.c.cost, result.c.seconds, checks.label("check_seconds"), result.c.recorded_at)
    query = query.join(job, job.c.id == result.c.job_id)
    chosen = result.c.device.startswith(device, autoescape=True) & (job.c.cost > 0)
    chosen &= job.c.kind.in_(("train", "eval", "shard"))
    now, before = list(running), list[Took]()
    for row in db.execute(query.where(chosen).order_by(result.c.job_id.desc()).limit(LATEST)).mappings():
        seconds = row["seconds"] + (row["check_seconds"] or 0.0)  # older rows do not say
        took = Took(row, row["cost"], seconds, min(1.0, seconds / WHOLE_SECONDS))
        (now if row["recorded_at"] >= since else before).append(took)
    return corrected(now, before)
