"""The drive from start to end: a driver is registered, workers started or reached, the queue run until it is empty."""

import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import psutil
from sqlalchemy import Connection, select, update

from robustlib import VERSION
from robustlib.number_text import counted
from robustq.cluster.bad_gpus import BadGpus
from robustq.cluster.child_workers import child_workers
from robustq.cluster.driver.leases import dead_drivers
from robustq.cluster.driver.loop import loop
from robustq.cluster.driver.progress import Progress
from robustq.cluster.driver.state import Driver, Watch
from robustq.cluster.early_child import EarlyChild
from robustq.cluster.machine_locks import CPUS, Neighbours
from robustq.cluster.process_identity import identity
from robustq.cluster.ray_connection import check_artifacts, local_ray, reached, slots_of
from robustq.cluster.ray_failures import RayLost, run_with_restarts
from robustq.cluster.ray_workers import RayWorkers
from robustq.cluster.slots import Slots
from robustq.cluster.this_machine import gpus_of, local_slots, on_those, ray_is_forced
from robustq.cluster.workers import Workers
from robustq.jobs.errors import RobustqError, RunError
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.shards import SHARD_SECONDS, seconds_a_unit
from robustq.jobs.queue.status import counts, widest
from robustq.jobs.store.connection import Store
from robustq.jobs.store.presence import REPLACED, rescue, watched
from robustq.jobs.store.schema import attempt, job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.text.notes import LOGGER, note


def drive_and_watch(store: Store, sweep_id: int | None, *, as_json: bool = False, **where: Any) -> dict[str, int]:
    """Run the queue to its end, showing progress on stderr; returns the jobs by state. as_json: the progress, a line of
    JSON each time.  where: see `drive`.
    """
    progress = Progress(as_json=as_json)
    try:
        return drive(store, sweep_id=sweep_id, watch=progress, tell=progress.tell, **where)
    finally:
        progress.close()


def drive(
    store: Store,
    *,
    sweep_id: int | None = None,
    cpus_per_job: int | None = None,
    slots: Slots | None = None,
    address: str | None = None,
    insecure: bool = False,
    early: EarlyChild | None = None,
    watch: Watch = lambda counts, costs: None,
    tell: Callable[[str], None] = note,
) -> dict[str, int]:
    """Run the store's queue until it is empty; returns the jobs by state.

    sweep_id: only this sweep's jobs.  slots: instead of those found.  address: of a Ray cluster to run on, "auto" for
    the one that this machine belongs to; this machine alone where it is None.  insecure: also without a token.
    early: a process for jobs that was started before the queue was known; used where this machine's one slot is enough.
    watch: called several times a second with the jobs by state, and with the estimated cost of what is done and left
    and the seconds that this takes.
    tell: called with a line where Ray or the server of the store dies, and is waited for or started again.
    An interrupt, SIGTERM or SIGHUP gives every job back to the queue and goes on as KeyboardInterrupt.
    """
    with store.begin() as db:
        drivers.reclaim(db, dead_drivers(db), heard=drivers.holders(db))  # nobody has been watched yet
        found, width = counts(db, sweep_id), widest(db, sweep_id)
    if not any(found[state] for state in transitions.UNFINISHED):
        return found

    LOGGER.info("%s to be done", counted(sum(found[state] for state in transitions.UNFINISHED), "job"))
    forced, here = ray_is_forced(), slots if address is None else None
    neighbours = Neighbours([] if here is None else gpus_of(here)[: here.count] or [CPUS], tell)
    if address is None and here is None:
        here = local_slots(width, cpus_per_job, tell)
        with store.begin() as db:
            here = here if forced else one_slot(db, sweep_id, here)
        neighbours = Neighbours(gpus_of(here) or [CPUS], tell, most=here.count)
    with neighbours:
        if here is not None:
            here = on_those(here, neighbours.what, tell)
        run = Run(store, sweep_id, here or slots, width, cpus_per_job, watch, tell, neighbours)
        if here is None:
            reach = partial(far_workers, str(address), tell, insecure=insecure)
        elif here.count == 1 and not forced:
            reach = partial(one_child, here, early)
        else:
            reach = partial(workers_of_ray, here, tell)
        return run_with_restarts(reach, run.on, run.ended, tell)


@contextmanager
def far_workers(address: str, tell: Callable[[str], None], again: bool, *, insecure: bool) -> Iterator[Workers]:
    """Those of a cluster."""
    with reached(address, tell, insecure=insecure, again=again) as ray:
        yield RayWorkers(ray, on_cluster=True)


@contextmanager
def one_child(slots: Slots, early: EarlyChild | None, again: bool) -> Iterator[Workers]:
    """A process of this machine, without Ray."""
    with child_workers(slots, None if early is None else early.take()) as workers:
        yield workers


@contextmanager
def workers_of_ray(slots: Slots, tell: Callable[[str], None], again: bool) -> Iterator[Workers]:
    """Those of a Ray that is started here."""
    with local_ray(slots, tell) as ray:
        yield RayWorkers(ray, on_cluster=False)


@dataclass
class Run:
    """A drive with what stays from one start of Ray to the next.

    slots: known before workers are there; None for those of the cluster that is reached.  width: how many jobs the
    sweep can run side by side.
    """

    store: Store
    sweep_id: int | None
    slots: Slots | None
    width: int
    cpus_per_job: int | None
    watch: Watch
    tell: Callable[[str], None]
    neighbours: Neighbours
    gpus: BadGpus = field(default_factory=BadGpus)

    def on(self, workers: Workers) -> dict[str, int]:
        """Run the queue on these workers to its end."""
        if isinstance(workers, RayWorkers) and workers.on_cluster:
            check_artifacts(workers.ray, self.store.artifacts)
        there = self.slots
        if there is None:
            assert isinstance(workers, RayWorkers)
            there = slots_of(workers.ray, self.width, self.cpus_per_job)
            self.cpus_per_job = there.num_cpus  # also on what is there after a restart
        LOGGER.info("%s of %g GPUs and %d CPU threads", counted(there.count, "slot"), there.num_gpus, there.num_cpus)
        about = {"tell": self.tell, "gpus": self.gpus, "look_around": self.neighbours.look}
        return work(Driver(self.store, workers, there, self.sweep_id, **about), self.watch)

    def ended(self) -> int:
        """How many jobs have, by which it is seen whether a restart brought anything."""
        found = self.store.insist(lambda db, _: counts(db, self.sweep_id), self.tell)
        return sum(n for state, n in found.items() if state not in transitions.UNFINISHED)


def one_slot(db: Connection, sweep_id: int | None, slots: Slots) -> Slots:
    """The first of the slots alone, where only one job of a sweep can run at a time and is not to be split."""
    if slots.count == 1 or sweep_id is None or widest(db, sweep_id) > 1:
        return slots
    chosen = job.c.id.in_(jobs_of(sweep_id)) & (job.c.kind == "eval")
    jobs = db.execute(select(job.c.spec, job.c.cost).where(chosen)).all()
    unit = seconds_a_unit(db, slots.device)
    if not jobs or any((row.spec.get("shards") or 1) > 1 or row.cost * unit > SHARD_SECONDS for row in jobs):
        return slots
    return replace(slots, count=1)


def work(driver: Driver, watch: Watch) -> dict[str, int]:
    """Register, run the queue to its end, and give back what is held, however that ends."""
    with driver.store.begin() as db:
        pid, started = os.getpid(), psutil.Process().create_time()
        driver.beat_at = drivers.register(db, driver.id, platform.node(), pid, started, VERSION, identity(pid))
        for gpu in driver.gpus.bad:  # before a restart of Ray, by a driver that is stopped since
            transitions.note(db, transitions.BAD_GPU, driver_id=driver.id, text=driver.gpus.told(gpu))
    with watched(driver.store) as driver.file:
        try:
            with interruptible(driver):
                return loop(driver, watch)
        except RobustqError:
            raise
        except Exception as error:
            if (found := driver.lost_workers()) is not None:  # whatever its calls raise then
                raise RayLost(f"{found} has died") from error
            raise
        finally:
            give_back(driver)


def give_back(driver: Driver) -> None:
    """End what runs and return its jobs to the queue.

    Raises RunError, with what was recorded kept beside, where the store is not at its place any more.
    """
    for bundle in (*driver.bundles, *driver.blocked):
        with suppress(Exception):  # a Ray that is gone has stopped them; what counts is to give the jobs back
            driver.workers.stop(bundle.frames, None)  # all of it goes, or a cluster ends them by itself
    lost = driver.store_change()
    if lost is None or lost[0] == REPLACED:  # then it is still open, though under no name
        write = driver.write if driver.workers_died else driver.store.write  # whoever else ends waits for no server
        write(lambda db: leave(db, driver))
    if lost is not None:
        raise RunError(rescue(driver.store, driver.file, *lost))


def leave(db: Connection, driver: Driver) -> None:
    """A driver ends, and with it, where they are its own, the logs of its workers but those that were kept."""
    drivers.stop(db, driver.id)
    if not driver.on_cluster:
        kept = attempt.c.log.startswith(driver.store.artifacts, autoescape=True)
        db.execute(update(attempt).where((attempt.c.driver_id == driver.id) & ~kept).values(log=None))


@contextmanager
def interruptible(driver: Driver) -> Iterator[None]:
    """What asks a process to end as an interrupt: Ctrl-C, SIGTERM, and SIGHUP, which a terminal sends that closes,
    unless it is ignored, as under nohup. To be entered after workers are there: Ray sets handlers of its own.

    The driver also remembers that it was told: an exception that comes while Python tidies up an object is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        driver.stop_requested = True
        raise KeyboardInterrupt

    asking = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asking.append(signal.SIGHUP)
    before = {which: signal.signal(which, interrupt) for which in asking}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
