"""The time left of a queue: what its open jobs are expected to take, corrected by how far those are that run."""

import math
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.settings import ONE_SEARCH
from robustq.jobs.queue.pace import COLUMNS, OF_A_JOB, Pace, Took, learnt_pace
from robustq.jobs.store.schema import driver, job, result
from robustq.jobs.store.sweeps import jobs_of

LATE = 0.1  # of what a job was to take, that is left of one that took longer and does not say how far it is
TELLING_SHARE, TELLING_SECONDS = 0.25, 60.0  # of a job that runs: with one of these its own pace tells something
RADII = re.compile(rf", (\d+) {ONE_SEARCH}$")
WORK = job.c.kind.in_(("train", "eval", "shard", "probe")) & (job.c.parts == 0)


class Costs(NamedTuple):
    """The estimated cost of what is done and of what is left, and the seconds left; None where these are not known."""

    done: float
    left: float
    seconds: float | None = None


@dataclass(frozen=True)
class Running:
    """A running job: its columns, the seconds since it began, which share of it is done.

    radii: that its search is about, of which each has a job.
    """

    about: Any
    cost: float
    elapsed: float
    share: float
    radii: int = 1

    @property
    def at_this_pace(self) -> float | None:
        """Seconds that all of it takes, by how far it has come; None where it has not said so, or only just began: what
        came before its work, such as the start of its process, would count as often as the rest.
        """
        tells = self.share >= TELLING_SHARE or (self.share > 0 and self.elapsed >= TELLING_SECONDS)
        return self.elapsed / self.share if tells and self.elapsed > 0 else None

    def left(self, pace: Pace) -> float | None:
        """Seconds that are left of it; None where nothing is known."""
        expected, seen = pace.seconds(self.about, self.cost * self.radii), self.at_this_pace
        if seen is None:
            return None if expected is None else max(expected - self.elapsed, LATE * expected)
        trust = math.sqrt(min(self.share, 1.0))
        whole = seen if not expected else expected ** (1 - trust) * seen**trust
        return whole * max(0.0, 1 - self.share)


class Waiting(NamedTuple):
    """Jobs alike that wait: their columns, the sum of their costs, the largest, and the share of a slot of each."""

    about: Any
    cost: float
    largest: float
    slot_share: float = 1.0


def seconds_left(pace: Pace, running: Iterable[Running], waiting: Iterable[Waiting], slots: float) -> float | None:
    """Seconds until all is done on so many slots: never less than the longest job alone. None where some of it is of
    unknown length.
    """
    total = longest = 0.0
    for one in running:
        left = one.left(pace)
        if left is None:
            return None
        total, longest = total + left, max(longest, left)
    for some in waiting:
        seconds, alone = pace.seconds(some.about, some.cost, one=some.largest), pace.seconds(some.about, some.largest)
        if seconds is None or alone is None:
            return None
        total, longest = total + seconds * some.slot_share, max(longest, alone)
    return max(total / max(slots, 1.0), longest)


def time_left(
    db: Connection,
    sweep_id: int | None,
    device: str,
    slots: float,
    dead: Collection[str] = (),
    *,
    since: float = math.inf,
) -> float | None:
    """Seconds until the queue, or a sweep, is done on so many slots of this kind of device: "cpu" or "cuda".

    dead: drivers that have ended without a word, whose jobs wait, to be begun anew.  since: when its driver began; what
    was done from then on corrects what was learnt before.
    """
    running = running_jobs(db, sweep_id, dead)
    seen = [Took(one.about, one.cost * one.radii, one.at_this_pace or 0.0, one.share) for one in running]
    pace = learnt_pace(db, device, since=since, running=seen)
    return seconds_left(pace, running, waiting_jobs(db, sweep_id, dead), slots)


def seconds_left_here(db: Connection, sweep_id: int | None, dead: Collection[str] = ()) -> float | None:
    """The same as far as the store alone tells: on as many slots as jobs run now, on the device of the latest result;
    None where nothing runs.  dead: drivers that have ended without a word, whose jobs run no more.
    """
    runs = WORK & at_work_on(job, dead)
    at_once = db.execute(select(sa.func.count()).where(runs)).scalar_one()
    if at_once == 0:
        return None
    latest = select(result.c.device).order_by(result.c.job_id.desc()).limit(1)
    device = str(db.execute(latest).scalar() or "").partition(":")[0]
    at_work = driver.c.id.in_(select(job.c.lease_owner).where(runs))
    began = db.execute(select(sa.func.min(driver.c.started_at)).where(at_work)).scalar()
    return time_left(db, sweep_id, device, at_once, dead, since=math.inf if began is None else began)


def at_work_on(jobs: Any, dead: Collection[str]) -> Any:
    """That a job of this table runs, and not as one of a driver that has ended."""
    return (jobs.c.state == "running") & sa.func.coalesce(jobs.c.lease_owner, "").not_in(dead)


def running_jobs(db: Connection, sweep_id: int | None, dead: Collection[str] = ()) -> list[Running]:
    names = (job.c.id, job.c.cost, job.c.recipe, job.c.bundle_key)
    moving = (job.c.progress_done, job.c.progress_total, job.c.started_at)
    query = select(*COLUMNS, *names, *moving).where(job.c.id.in_(jobs_of(sweep_id)) & WORK & at_work_on(job, dead))
    found, now = [], time.time()
    for row in db.execute(query).mappings():
        share = (row["progress_done"] or 0) / row["progress_total"] if row["progress_total"] else 0.0
        elapsed = max(0.0, now - (row["started_at"] or now))
        found.append(Running(row, row["cost"], elapsed, share, radii_of(row["recipe"])))
    return found


def radii_of(recipe: str | None) -> int:
    """How many radii are one search with this one: it takes what all of them cost."""
    told = RADII.search(recipe or "")
    return int(told[1]) if told else 1


def waiting_jobs(db: Connection, sweep_id: int | None, dead: Collection[str] = ()) -> list[Waiting]:
    """What waits, but for the radii of searches that run: these are done with them. dead: see `time_left`."""
    other = job.alias("searching")
    of_a_search = job.c.recipe.endswith(ONE_SEARCH, autoescape=True)
    searched = select(other.c.bundle_key).where(at_work_on(other, dead) & (other.c.parts == 0))
    left = (job.c.state == "running") & job.c.lease_owner.in_(dead)
    open_ = (job.c.state.in_(("blocked", "queued", "leased")) | left) & ~(
        of_a_search & job.c.recipe.is_not(None) & job.c.bundle_key.in_(searched)
    )
    query = (
        select(*COLUMNS, job.c.gpu_share, sa.func.sum(job.c.cost), sa.func.max(job.c.cost))
        .where(job.c.id.in_(jobs_of(sweep_id)) & WORK & open_)
        .group_by(*OF_A_JOB, sa.text("model"), sa.text("method"), job.c.gpu_share)
    )
    found = []
    for row in db.execute(query).mappings():
        *_, share, total, largest = row.values()
        found.append(Waiting(row, total, largest, 1.0 if share is None else share))
    return found
