"""Bundles that are stuck: a worker or node that says nothing any more, a job that takes too long."""

import time

from sqlalchemy import Connection

from robustlib.number_text import in_seconds
from robustq.cluster.driver.state import Bundle, Driver
from robustq.cluster.worker_ends import keep_log
from robustq.jobs.queue import transitions

SILENCE_SECONDS = 60.0  # without so much as a sign of life, after which a worker is taken for frozen
START_SECONDS = 600.0  # that a bundle may wait for its process, on a cluster that others use too
STALL_SECONDS = 24 * 3600.0  # that a job may compute between two signs of progress


def end_stuck(db: Connection, driver: Driver) -> None:
    """End every bundle that is stuck, and put its jobs where they belong."""
    now = time.monotonic()
    slept = now - driver.checked_at
    if slept > SILENCE_SECONDS / 2:  # it was this driver, and its workers may have slept with it
        for bundle in driver.bundles:
            bundle.heard_at = now
            bundle.began_at += slept
            bundle.progressed_at += slept
    driver.checked_at = now
    for bundle in list(driver.bundles):
        if (late := overdue(bundle, now)) is not None:
            claimed = bundle.running
            assert claimed is not None
            text = f"it ran longer than {in_seconds(late)}: timeout_seconds in its study is the limit"
            transitions.fail(db, claimed, "TimedOut", text, text)
            bundle.open.pop(claimed.id)
            bundle.running = None
            give_up(db, driver, bundle, "")
        elif (reason := stuck(bundle, now)) is not None:
            give_up(db, driver, bundle, reason)


def overdue(bundle: Bundle, now: float) -> float | None:
    """The limit that the running job has passed."""
    limit = None if bundle.running is None else bundle.running.timeout_seconds
    return limit if limit is not None and now - bundle.began_at > limit else None


def stuck(bundle: Bundle, now: float) -> str | None:
    """Why a bundle is taken for lost. Empty where that is no fault of its jobs."""
    if bundle.place is None:
        return "" if now - bundle.heard_at > START_SECONDS else None
    if now - bundle.heard_at > SILENCE_SECONDS:
        return f"its worker on {bundle.place.node} was silent for {SILENCE_SECONDS:g} seconds"
    if bundle.running is not None and now - bundle.progressed_at > STALL_SECONDS:
        return f"it made no progress for {STALL_SECONDS / 3600:g} hours"
    return None


def give_up(db: Connection, driver: Driver, bundle: Bundle, reason: str) -> None:
    """Kill a bundle's worker and give its jobs back; the one that ran has crashed, where there is a reason."""
    end(driver, bundle)
    close(db, bundle, reason)
    driver.bundles.remove(bundle)


def end(driver: Driver, bundle: Bundle) -> None:
    """Stop a bundle's worker, also a frozen one."""
    driver.workers.stop(bundle.frames, bundle.place)


def close(db: Connection, bundle: Bundle, reason: str) -> None:
    """A bundle is over: what it did not end goes back, and the job it died under has crashed.

    One that died before any job began counts against its first: else it would be tried again for ever.
    """
    suspect = bundle.running or next(iter(bundle.open.values()), None)
    for claimed in bundle.open.values():
        if reason and claimed == suspect:  # not `is`: what a frame brings back is a copy
            keep_log(db, bundle.place, claimed, bundle.settings.artifacts)
            transitions.crash(db, claimed, reason)
        else:
            transitions.release(db, claimed, "lost")
