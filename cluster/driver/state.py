"""The state of a driver: its store and slots, its running bundles, and the last known state of the whole queue."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from robustq.cluster.bad_gpus import BadGpus
from robustq.cluster.messages import Place, WorkerSettings
from robustq.cluster.slots import Slots
from robustq.cluster.workers import Stream, Workers
from robustq.jobs.errors import RunError
from robustq.jobs.queue import drivers
from robustq.jobs.queue.shards import seconds_a_unit
from robustq.jobs.queue.status import costs, counts, smallest_share
from robustq.jobs.queue.time_left import Costs, time_left
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.connection import Store
from robustq.jobs.store.presence import OVERWRITTEN, StoreFile

TOTALS_SHARE = 20  # times as long as it took, the count of all jobs is kept: at most a twentieth of the time goes there

Watch = Callable[[dict[str, int], Costs], None]


@dataclass
class Bundle:
    """A running bundle: its stream of frames, and its jobs that have not ended, in order.

    share: of a slot.  place: where it runs, once it has said so.  Times are of the monotonic clock: when it was sent
    off, last heard of, when its running job began and last got on.
    """

    frames: Stream
    open: dict[int, Claimed]
    settings: WorkerSettings
    share: float
    running: Claimed | None = None
    place: Place | None = None
    heard_at: float = field(default_factory=time.monotonic)
    began_at: float = 0.0
    progressed_at: float = 0.0


@dataclass
class Totals:
    """The jobs by state, the estimated cost of what is done and what is left with the seconds that this takes, what a
    unit of it takes here, and the smallest share of a slot that a queued job needs.
    """

    counts: dict[str, int]
    costs: Costs
    unit_seconds: float
    smallest_share: float
    taken_at: float
    took: float


@dataclass
class Driver:
    """One driver at work on a store. sweep_id: the sweep whose jobs it runs; None for all.

    began: whether a job of its has begun, so that workers are known to start.  began_at: when it began itself.
    file: of an SQLite store.  beat_at: its last sign of life, by which it knows the store for its own.
    lost: what has happened to the store, once that is known.
    watched: other drivers that hold jobs, with their last sign of life and how often it was found to be still the last.
    workers: which run the bundles; workers_died: whether what carries them has.  tell: hears what a person should know.
    look_around: done now and then, to see who else is on this machine.
    gpus: what is known of them in this run.  blocked: bundles that came to one that is given up, and keep its place.
    smallest_gpu: bytes of the smallest GPU that a job has run on.
    """

    store: Store
    workers: Workers
    slots: Slots
    sweep_id: int | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    bundles: list[Bundle] = field(default_factory=list)
    renewed_at: float = 0.0
    checked_at: float = field(default_factory=time.monotonic)
    known: Totals | None = None
    began: bool = False
    began_at: float = field(default_factory=time.time)
    stop_requested: bool = False
    file: StoreFile | None = None
    beat_at: float | None = None
    lost: tuple[str, str] | None = None
    watched: dict[str, tuple[float, int]] = field(default_factory=dict)
    workers_died: bool = False
    tell: Callable[[str], None] = lambda text: None
    look_around: Callable[[], None] = lambda: None
    gpus: BadGpus = field(default_factory=BadGpus)
    smallest_gpu: int | None = None
    blocked: list[Bundle] = field(default_factory=list)

    @property
    def free_slots(self) -> float:
        """Slots, or parts of one, that are free. A GPU that is given up and whose place is kept is none, whatever part
        of it is kept.
        """
        blocked = {bundle.place.gpu for bundle in self.blocked if bundle.place}
        at_work = [bundle.share for bundle in self.bundles if bundle.place is None or bundle.place.gpu not in blocked]
        return self.slots.count - len(blocked) - sum(at_work)

    def write(self, change: Callable[[Connection], Any], *, sign: bool = False) -> Any:
        """A change in a transaction that a server which restarts does not stop; returns what it returns.

        sign: give a sign of life with it, on a server always. It tells whether the change was made where the server
        went before it could say so. What a change does beside the store may come twice.
        """
        known, tried = self.beat_at, []
        is_file = self.store.engine.dialect.name == "sqlite"

        def signed(db: Connection, again: bool) -> Any:
            self.beat_at = known
            if again:
                at = drivers.heartbeat(db, self.id)
                for made in tried:
                    if made[1] == at:
                        return made
                drivers.renew(db, self.id)  # nobody could take its jobs meanwhile, and nobody shall now
            found = change(db)
            tried.append((found, drivers.beat(db, self.id)))
            return tried[-1]

        if is_file and not sign:
            return self.store.write(change)
        found, self.beat_at = (
            self.store.write(lambda db: signed(db, False)) if is_file else self.store.insist(signed, self.tell)
        )
        return found

    def store_change(self) -> tuple[str, str] | None:
        """What has happened to the store under this driver, as `StoreFile.changed` says it."""
        if self.lost is None and self.file is not None:
            self.lost = self.file.changed()
        return self.lost

    def check(self) -> None:
        """Raise RunError where the store is not the one that this driver began with."""
        if (found := self.store_change()) is not None:
            raise RunError(f"store {self.store.url} {found[1]}")

    @property
    def on_cluster(self) -> bool:
        """Whether the workers were there already, on machines of their own; else they are this driver's."""
        return self.workers.on_cluster

    def lost_workers(self) -> str | None:
        """What has died of that which carries the workers, where something has."""
        found = self.workers.lost()
        self.workers_died |= found is not None
        return found

    def verify(self, db: Connection) -> None:
        """As `check`, and that the store has this driver's last sign of life: one that was restored has an earlier."""
        self.check()
        if self.beat_at is not None and drivers.heartbeat(db, self.id) != self.beat_at:
            self.lost = OVERWRITTEN, "was overwritten by an earlier or another one"
            self.check()

    def totals(self, db: Connection, *, now: bool = False) -> Totals:
        """What is known of the queue as a whole, counted anew when that is old for what counting costs."""
        start = time.monotonic()
        if now or self.known is None or start - self.known.taken_at > TOTALS_SHARE * self.known.took:
            unit = seconds_a_unit(db, self.slots.device)
            share = self.slots.share(smallest_share(db))
            left = time_left(db, self.sweep_id, self.slots.device, self.slots.count, since=self.began_at)
            found = counts(db, self.sweep_id), Costs(*costs(db, self.sweep_id), left), unit, share
            end = time.monotonic()
            self.known = Totals(*found, taken_at=end, took=end - start)
        return self.known
