"""The driver: claim jobs, have workers run them in bundles, record each frame where the claim still holds."""

import os
import time
from dataclasses import replace

from sqlalchemy import Connection, select

from robustq.cluster.driver import watchdog
from robustq.cluster.driver.gpu_health import check_gpus, give_up_gpu, is_exclusive, judge_gpu
from robustq.cluster.driver.leases import keep_leases
from robustq.cluster.driver.prometheus import Metrics
from robustq.cluster.driver.state import Bundle, Driver, Totals, Watch
from robustq.cluster.messages import (
    Failed,
    Finished,
    Frame,
    Heartbeat,
    Progressed,
    Refused,
    Started,
    WorkerSettings,
)
from robustq.cluster.ray_failures import RayLost
from robustq.cluster.slots import GPU_BUNDLE_SECONDS, bundle_budget, bundle_size, next_share, share_for
from robustq.jobs.errors import RunError
from robustq.jobs.queue import driver_jobs, transitions
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.status import any_unfinished
from robustq.jobs.store.artifacts import drop_partial
from robustq.jobs.store.schema import job

POLL_SECONDS = 0.2


def loop(driver: Driver, watch: Watch) -> dict[str, int]:
    """Claim, launch, collect and record until nothing of this driver's scope is unfinished."""
    metrics = Metrics(driver) if driver.on_cluster else None  # on this machine alone nobody would ask for them
    while True:
        if driver.stop_requested:
            raise KeyboardInterrupt
        driver.check()
        check_workers(driver)
        driver.write(lambda db: driver_jobs.settle_all(db, driver.id, driver.sweep_id))
        bundles, left, totals = driver.write(lambda db: plan(db, driver))
        driver.bundles += [launch(driver, claimed) for claimed in bundles]  # what is launched is leased for sure
        watch(totals.counts, totals.costs)
        if metrics is not None:
            metrics.show(totals)
        if not left:
            return totals.counts
        check_gpus(driver)
        frames, ended = collect(driver)
        record(driver, frames, ended)
        housekeep(driver)
        if not frames and not driver.bundles:
            time.sleep(POLL_SECONDS)  # all that is left waits for its time or for another driver


def check_workers(driver: Driver) -> None:
    """Raise RayLost where what carries the bundles has died, with all recorded that came from it."""
    if (found := driver.lost_workers()) is None:
        return
    if not driver.on_cluster:  # here all frames lie in this process; elsewhere to ask for a large one may be its end
        record(driver, *collect(driver))
    raise RayLost(f"{found} has died")


def plan(db: Connection, driver: Driver) -> tuple[list[list[transitions.Claimed]], bool, Totals]:
    """Claim what fills the free slots; also whether anything is unfinished, and the jobs by state."""
    bundles = claim_bundles(db, driver)
    left = any_unfinished(db, driver.sweep_id)
    return bundles, left, driver.totals(db, now=not left)


def claim_bundles(db: Connection, driver: Driver) -> list[list[transitions.Claimed]]:
    """Claim bundles for the free slots."""
    slots, free_slots, bundles = driver.slots, driver.free_slots, []
    while free_slots > slots.smallest - 1e-9:
        totals = driver.totals(db)
        places = round(slots.count / totals.smallest_share)  # for bundles, as many as may run at once
        most = bundle_size(totals.counts["queued"], places)
        # On GPUs each bundle is a process anew; on CPUs workers are used again, and small bundles cost nothing.
        least = GPU_BUNDLE_SECONDS / totals.unit_seconds if slots.num_gpus else 0.0
        budget = bundle_budget(totals.costs[1], places, least)
        claimed = claim(db, driver.id, most=most, sweep_id=driver.sweep_id, budget=budget, gpu_share=free_slots)
        if not claimed:
            break
        if whole := driver_jobs.split_long(db, claimed, slots.count, totals.unit_seconds):
            bundles.append(whole)
            free_slots -= slots.share(whole[0].gpu_share)
    return bundles


def launch(driver: Driver, claimed: list[transitions.Claimed]) -> Bundle:
    slots = driver.slots
    share = slots.share(claimed[0].gpu_share)
    threads = max(1, int(slots.num_cpus * share))
    bad = frozenset(driver.gpus.bad)
    settings = WorkerSettings(slots.device, threads, driver.store.artifacts, os.getcwd(), share, bad)
    stream = driver.workers.launch(claimed, settings, slots)
    return Bundle(stream, {c.id: c for c in claimed}, settings, share)


def collect(driver: Driver) -> tuple[list[tuple[Bundle, Frame]], list[tuple[Bundle, str]]]:
    """Frames that have come, and bundles that have ended, with the reason where their worker died."""
    frames: list[tuple[Bundle, Frame]] = []
    ended: list[tuple[Bundle, str]] = []
    if not driver.bundles:
        return frames, ended
    bundles = {id(bundle.frames): bundle for bundle in driver.bundles}
    running = [(bundle.frames, bundle.place) for bundle in driver.bundles]
    came, ends = driver.workers.collect(running, POLL_SECONDS)
    for stream, frame in came:
        bundle = bundles[id(stream)]
        bundle.heard_at = time.monotonic()
        frames.append((bundle, frame))
    for stream, end in ends:
        if end.cannot_load and not driver.began:  # as every other worker would
            raise RunError(cannot_load(driver, end.reason))
        ended.append((bundles[id(stream)], end.reason))
    return frames, ended


def cannot_load(driver: Driver, reason: str) -> str:
    mend = ": every node needs the robustq of the driver's machine" if driver.on_cluster else ""
    return f"the workers cannot load robustq{mend}; nothing was run, all jobs are still queued: {reason}"


def record(driver: Driver, frames: list[tuple[Bundle, Frame]], ended: list[tuple[Bundle, str]]) -> None:
    """Write what came in one transaction, then forget what finished jobs kept for a restart."""
    if not any(not isinstance(frame, Heartbeat) for _, frame in frames) and not ended:
        return
    # On a server each frame for itself: holding the locks of several, two drivers would wait for each other.
    batches = [frames] if driver.store.engine.dialect.name == "sqlite" else [[one] for one in frames]
    for batch in batches:
        driver.write(lambda db, batch=batch: record_batch(db, driver, batch), sign=True)
        for bundle, frame in batch:
            judge_gpu(driver, bundle, frame)
            update_bundle(bundle, frame)
            driver.began |= isinstance(frame, Started)
            if isinstance(frame, Refused):
                driver.bundles.remove(bundle)
                driver.blocked.append(bundle)
    for bundle, reason in ended:
        if any(bundle is one for one in driver.blocked):  # it died of itself: it keeps the place no more, and no jobs
            driver.blocked = [one for one in driver.blocked if one is not bundle]
            continue
        driver.write(lambda db, bundle=bundle, reason=reason: watchdog.close(db, bundle, reason))
        driver.bundles.remove(bundle)
        killed = reason and not reason.startswith("OutOfMemoryError")  # for the machine's memory, not the GPU's
        if killed and bundle.running and bundle.place and driver.slots.num_gpus:
            give_up_gpu(driver, bundle.place.gpu, driver.gpus.died(bundle.place.gpu, bundle.running, reason))
    for _, frame in frames:
        if isinstance(frame, Finished) and frame.job.kind == "train":
            drop_partial(driver.store.artifacts, frame.job.key)
        if isinstance(frame, Failed) and frame.disk_full:
            # Every other job would meet the same end: stop here, with all that was recorded kept.
            raise RunError(f"no room left on the disk ({frame.message}): make room, then run the same command again")


def record_batch(db: Connection, driver: Driver, batch: list[tuple[Bundle, Frame]]) -> None:
    """Record frames in the store that this driver began with."""
    driver.verify(db)
    for bundle, frame in batch:
        record_frame(db, driver, bundle, frame)


def record_frame(db: Connection, driver: Driver, bundle: Bundle, frame: Frame) -> None:
    """Record one frame of a bundle."""
    match frame:
        case Started(claimed, place):
            held = {"gpus": driver.slots.num_gpus * bundle.share, "cpus": float(bundle.settings.threads)}
            transitions.start(db, claimed, driver.id, place.node, place.pid, place.gpu_ids, place.log, **held)
        case Progressed(claimed, done, total, note):
            transitions.progress(db, claimed, done, total, note)
        case Finished(claimed, row, examples, artifacts, gpu_memory):
            transitions.finish(db, claimed, row, None if examples is None else (examples, row["n"]), artifacts)
            if gpu_memory is not None and claimed.gpu_share is None:
                # A share of the smallest GPU that was met: bytes that are little of a large one may be much of another.
                driver.smallest_gpu = min(driver.smallest_gpu or gpu_memory.total, gpu_memory.total)
                transitions.learn_share(db, claimed, share_for(gpu_memory.peak, driver.smallest_gpu))
        case Refused():
            for claimed in bundle.open.values():
                transitions.release(db, claimed, "lost")
        case Failed():
            record_failure(db, bundle, frame)


def record_failure(db: Connection, bundle: Bundle, frame: Failed) -> None:
    """Record what a job raised: as its own end only where the machine has no part in it."""
    claimed = frame.job
    larger = next_share(bundle.settings.gpu_share) if frame.out_of_memory else None
    if frame.disk_full:
        transitions.release(db, claimed, "disk full")
    elif is_exclusive(bundle, frame):
        transitions.release(db, claimed, "gpu busy")
    elif larger is not None and frame.gpu is None:
        transitions.release(db, claimed, "out of memory", gpu_share=larger)
    elif frame.gpu is not None or (frame.out_of_memory and bundle.settings.device == "cuda"):
        transitions.crash(db, claimed, f"{frame.error_class}: {frame.message}", frame.error_class, frame.traceback)
    else:
        transitions.fail(db, claimed, frame.error_class, frame.message, frame.traceback)


def update_bundle(bundle: Bundle, frame: Frame) -> None:
    """What a recorded frame says of its bundle: what runs, and what has ended."""
    match frame:
        case Started(claimed, place):
            bundle.running, bundle.place = claimed, place
            bundle.began_at = bundle.progressed_at = time.monotonic()
        case Progressed():
            bundle.progressed_at = time.monotonic()
        case Finished(claimed) | Failed(claimed):
            bundle.open.pop(claimed.id)
            bundle.running = None
        case Refused(place):
            bundle.place = place
            bundle.open.clear()


def housekeep(driver: Driver) -> None:
    """Stop what was cancelled and what is stuck, and prolong the leases."""
    before = [(bundle, dict(bundle.open), bundle.running) for bundle in driver.bundles]

    def change(db: Connection) -> bool:
        driver.bundles = [bundle for bundle, _, _ in before]  # a server may break off what has been begun
        for bundle, left, running in before:
            bundle.open, bundle.running = dict(left), running
        driver.verify(db)
        end_cancelled(db, driver)
        watchdog.end_stuck(db, driver)
        return keep_leases(db, driver)

    if driver.write(change):
        driver.look_around()
        count_slots(driver)


def end_cancelled(db: Connection, driver: Driver) -> None:
    held = (job.c.lease_owner == driver.id) & job.c.cancel_requested
    cancelled = set(db.execute(select(job.c.id).where(held)).scalars())
    for bundle in [b for b in driver.bundles if cancelled & b.open.keys()]:
        watchdog.end(driver, bundle)
        for claimed in bundle.open.values():
            if claimed.id in cancelled:
                transitions.confirm_cancelled(db, claimed)
            else:
                transitions.release(db, claimed, "lost")
        driver.bundles.remove(bundle)


def count_slots(driver: Driver) -> None:
    """Machines come and go; what a slot is stays as it was."""
    found = driver.workers.slots_now(driver.slots)
    if found is None:
        return
    # What keeps the place of a GPU says nothing more, unless it has gone with its node.
    driver.blocked = [one for one in driver.blocked if not driver.workers.has_ended(one.frames)]
    if found.num_gpus == driver.slots.num_gpus:
        driver.slots = replace(found, shared=driver.slots.shared)
