"""The driver: claim jobs, run them in bundles on Ray, record each frame where the claim still holds."""

import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import psutil
from sqlalchemy import Connection, select

from cluster.bundle import Failed, Finished, Frame, Moved, Setting, Started
from cluster.connect import gpu_count, local_ray, remote_bundle, worker_env
from cluster.resources import Slots, bundle_budget, bundle_size, plan_slots, usable_cpus
from jobs import queue, worst
from jobs.artifacts import drop_partial
from jobs.engine import Store
from jobs.errors import RunError
from jobs.query import costs, counts, jobs_of, widest
from jobs.queue import Claimed
from jobs.schema import driver, job

Watch = Callable[[dict[str, int], tuple[float, float]], None]

RENEW_SECONDS = 20.0
POLL_SECONDS = 0.2


@dataclass
class Bundle:
    """A running bundle: its stream of frames, and its jobs that have not ended, in order."""

    frames: Any
    open: dict[int, Claimed]
    running: Claimed | None = None


@dataclass
class Driver:
    """One driver at work on a store."""

    store: Store
    slots: Slots
    sweep_id: int | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    bundles: list[Bundle] = field(default_factory=list)
    renewed_at: float = 0.0


def drive(
    store: Store,
    *,
    sweep_id: int | None = None,
    cpus_per_job: int | None = None,
    watch: Watch = lambda counts, costs: None,
) -> dict[str, int]:
    """Run the store's queue on this machine until it is empty; returns the jobs by state.

    sweep_id: only this sweep's jobs.  watch: called several times a second with the jobs by state, and with
    the estimated cost of what is done and of what is left.
    An interrupt or SIGTERM gives every job back to the queue and goes on as KeyboardInterrupt.
    """
    with store.begin() as db:
        queue.reclaim(db, dead_drivers(db))
        found, width = counts(db, sweep_id), widest(db, sweep_id)
    if not any(found[state] for state in queue.UNFINISHED):
        return found
    slots = plan_slots(usable_cpus(), gpu_count(), width, cpus_per_job)
    at_work = Driver(store, slots, sweep_id)
    with store.begin() as db:
        started = psutil.Process().create_time()
        queue.register(db, at_work.id, platform.node(), os.getpid(), started, version("robustq"))
    try:
        with local_ray(slots) as ray, interrupt_on_sigterm():
            return loop(at_work, ray, watch)
    finally:
        with store.begin() as db:
            queue.stop(db, at_work.id)


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM as an interrupt. To be entered after Ray has started, which sets a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def dead_drivers(db: Connection) -> list[str]:
    """Drivers of this machine whose process is gone: their leases need not run out first."""
    rows = db.execute(select(driver).where(driver.c.stopped_at.is_(None) & (driver.c.host == platform.node()))).all()
    return [row.id for row in rows if not alive(row.pid, row.process_started_at)]


def alive(pid: int, started_at: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started_at) < 1
    except psutil.Error:
        return False


def loop(at_work: Driver, ray: Any, watch: Watch) -> dict[str, int]:
    """Claim, launch, collect and record until nothing of this driver's scope is unfinished."""
    while True:
        with at_work.store.begin() as db:
            settle_worst_cases(db, at_work)
            launch(db, at_work)
            found, cost = counts(db, at_work.sweep_id), costs(db, at_work.sweep_id)
        watch(found, cost)
        if not any(found[state] for state in queue.UNFINISHED):
            return found
        frames, ended = collect(at_work, ray)
        record(at_work, frames, ended)
        housekeep(at_work, ray)
        if not frames and not at_work.bundles:
            time.sleep(POLL_SECONDS)  # all that is left waits for its time or for another driver


def scope(at_work: Driver) -> Any:
    return None if at_work.sweep_id is None else jobs_of(at_work.sweep_id)


def settle_worst_cases(db: Connection, at_work: Driver) -> None:
    """Worst cases need only what the store holds: the driver computes them itself."""
    for claimed in queue.claim(db, at_work.id, most=64, kinds=["worst"], scope=scope(at_work)):
        if queue.start(db, claimed, at_work.id, platform.node(), os.getpid(), ""):
            worst.settle(db, claimed)


def launch(db: Connection, at_work: Driver) -> None:
    """Fill the free slots."""
    while len(at_work.bundles) < at_work.slots.count:
        slots = at_work.slots
        most = bundle_size(counts(db, at_work.sweep_id)["queued"], slots.count)
        budget = bundle_budget(costs(db, at_work.sweep_id)[1], slots.count)
        claimed = queue.claim(db, at_work.id, most=most, kinds=["train", "eval"], scope=scope(at_work), budget=budget)
        if not claimed:
            return
        setting = Setting(slots.device, slots.num_cpus, at_work.store.artifacts, os.getcwd())
        task = remote_bundle(slots.num_gpus, slots.num_cpus)
        named = task.options(name=claimed[0].name, runtime_env=worker_env(slots))
        at_work.bundles.append(Bundle(named.remote(claimed, setting), {c.id: c for c in claimed}))


def collect(at_work: Driver, ray: Any) -> tuple[list[tuple[Bundle, Frame]], list[tuple[Bundle, str]]]:
    """Frames that have come, and bundles that have ended, with the reason where their worker died."""
    frames: list[tuple[Bundle, Frame]] = []
    ended: list[tuple[Bundle, str]] = []
    if not at_work.bundles:
        return frames, ended
    streams = {id(bundle.frames): bundle for bundle in at_work.bundles}
    deadline = time.monotonic() + POLL_SECONDS
    timeout = POLL_SECONDS
    while streams and time.monotonic() < deadline:
        waiting = [bundle.frames for bundle in streams.values()]
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout, fetch_local=False)
        for stream in ready:
            bundle = streams[id(stream)]
            try:
                frames.append((bundle, ray.get(next(stream))))
            except StopIteration:
                ended.append((bundle, ""))
                del streams[id(stream)]
            except ray.exceptions.RayError as error:
                ended.append((bundle, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
                del streams[id(stream)]
        timeout = max(0.0, deadline - time.monotonic())
    return frames, ended


def record(at_work: Driver, frames: list[tuple[Bundle, Frame]], ended: list[tuple[Bundle, str]]) -> None:
    """Write what came in one transaction, then forget what finished jobs kept for a restart."""
    if not frames and not ended:
        return
    with at_work.store.begin() as db:
        for bundle, frame in frames:
            apply(db, at_work, bundle, frame)
        for bundle, reason in ended:
            close(db, bundle, reason)
            at_work.bundles.remove(bundle)
    for _, frame in frames:
        if isinstance(frame, Finished) and frame.job.kind == "train":
            drop_partial(at_work.store.artifacts, frame.job.key)
        if isinstance(frame, Failed) and frame.disk_full:
            # Every other job would meet the same end: stop here, with all that was recorded kept.
            raise RunError(f"no room left on the disk ({frame.message}): make room, then run the same command again")


def apply(db: Connection, at_work: Driver, bundle: Bundle, frame: Frame) -> None:
    """Record one frame of a bundle."""
    match frame:
        case Started(claimed, node, pid, gpu_ids):
            bundle.running = claimed
            queue.start(db, claimed, at_work.id, node, pid, gpu_ids)
        case Moved(claimed, done, total, note):
            queue.progress(db, claimed, done, total, note)
        case Finished(claimed, row, examples, artifacts):
            bundle.open.pop(claimed.id)
            bundle.running = None
            queue.finish(db, claimed, row, None if examples is None else (examples, row["n"]), artifacts)
        case Failed(claimed, error_class, message, traceback, disk_full):
            bundle.open.pop(claimed.id)
            bundle.running = None
            if disk_full:
                queue.release(db, claimed, "disk full")
            else:
                queue.fail(db, claimed, error_class, message, traceback)


def close(db: Connection, bundle: Bundle, reason: str) -> None:
    """A bundle is over: what it did not end goes back, and the job it died under has crashed.

    One that died before any job began counts against its first: else it would be tried again for ever.
    """
    suspect = bundle.running or next(iter(bundle.open.values()), None)
    for claimed in bundle.open.values():
        if reason and claimed == suspect:  # not `is`: what a frame brings back is a copy
            queue.crash(db, claimed, reason)
        else:
            queue.release(db, claimed, "lost")


def housekeep(at_work: Driver, ray: Any) -> None:
    """Stop what was cancelled, and prolong the leases."""
    with at_work.store.begin() as db:
        held = (job.c.lease_owner == at_work.id) & job.c.cancel_requested
        cancelled = set(db.execute(select(job.c.id).where(held)).scalars())
        for bundle in [b for b in at_work.bundles if cancelled & b.open.keys()]:
            ray.cancel(bundle.frames, force=True)
            for claimed in bundle.open.values():
                if claimed.id in cancelled:
                    queue.confirm_cancelled(db, claimed)
                else:
                    queue.release(db, claimed, "lost")
            at_work.bundles.remove(bundle)
        if time.monotonic() - at_work.renewed_at > RENEW_SECONDS:
            queue.renew(db, at_work.id)
            queue.reclaim(db, dead_drivers(db))
            at_work.renewed_at = time.monotonic()
