"""Driving: a driver registered, Ray started or reached, the queue run to its end, with a person watching or not."""

import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from cluster.connect import check_artifacts, cluster_ray, local_ray, local_slots, slots_of
from cluster.dispatch import loop
from cluster.driver import Driver, Watch
from cluster.leases import dead_drivers
from cluster.processes import identity
from cluster.progress import Progress
from cluster.resources import Slots
from jobs import queue
from jobs.engine import Store
from jobs.errors import RunError
from jobs.presence import REPLACED, rescue, watched
from jobs.states import counts, widest
from robustlib import VERSION


def drive_and_watch(store: Store, sweep_id: int | None, **where: Any) -> dict[str, int]:
    """Run the queue to its end, showing progress on stderr; returns the jobs by state. where: see `drive`."""
    progress = Progress()
    try:
        return drive(store, sweep_id=sweep_id, watch=progress, **where)
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
    watch: Watch = lambda counts, costs: None,
) -> dict[str, int]:
    """Run the store's queue until it is empty; returns the jobs by state.

    sweep_id: only this sweep's jobs.  slots: instead of those found.  address: of a Ray cluster to run on, "auto" for
    the one that this machine belongs to; this machine alone where it is None.  insecure: also without a token.
    watch: called several times a second with the jobs by state, and with the estimated cost of what is done and left.
    An interrupt, SIGTERM or SIGHUP gives every job back to the queue and goes on as KeyboardInterrupt.
    """
    with store.begin() as db:
        queue.reclaim(db, dead_drivers(db), heard=queue.holders(db))  # nobody has been watched yet
        found, width = counts(db, sweep_id), widest(db, sweep_id)
    if not any(found[state] for state in queue.UNFINISHED):
        return found
    if address is None:
        here = slots or local_slots(width, cpus_per_job)
        with local_ray(here) as ray:
            return work(Driver(store, ray, here, sweep_id), watch)
    with cluster_ray(address, insecure=insecure) as ray:
        check_artifacts(ray, store.artifacts)
        there = slots or slots_of(ray, width, cpus_per_job)
        return work(Driver(store, ray, there, sweep_id, elsewhere=True), watch)


def work(driver: Driver, watch: Watch) -> dict[str, int]:
    """Register, run the queue to its end, and give back what is held, however that ends."""
    with driver.store.begin() as db:
        pid, started = os.getpid(), psutil.Process().create_time()
        driver.beat_at = queue.register(db, driver.id, platform.node(), pid, started, VERSION, identity(pid))
    with watched(driver.store) as driver.file:
        try:
            with interruptible(driver):
                return loop(driver, watch)
        finally:
            give_back(driver)


def give_back(driver: Driver) -> None:
    """End what runs and return its jobs to the queue.

    Raises RunError, with what was recorded kept beside, where the store is not at its place any more.
    """
    for bundle in driver.bundles:
        with suppress(Exception):  # a Ray that is gone has stopped them; what counts is to give the jobs back
            driver.ray.cancel(bundle.frames, force=True)
    lost = driver.look()
    if lost is None or lost[0] == REPLACED:  # then it is still open, though under no name
        with driver.store.begin() as db:
            queue.stop(db, driver.id)
    if lost is not None:
        raise RunError(rescue(driver.store, driver.file, *lost))


@contextmanager
def interruptible(driver: Driver) -> Iterator[None]:
    """What asks a process to end as an interrupt: Ctrl-C, SIGTERM, and SIGHUP, which a terminal sends that closes,
    unless it is ignored, as under nohup. To be entered after Ray has started, which sets handlers of its own.

    The driver also remembers that it was told: an exception that comes while Python tidies up an object is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        driver.told_to_stop = True
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
