"""Which bundles are taken for stuck: by a clock that the test turns, without Ray."""

import time

from robustq.cluster.driver import watchdog
from robustq.cluster.driver.state import Bundle
from robustq.cluster.messages import Place, WorkerSettings
from robustq.jobs.queue.transitions import Claimed

PLACE = Place("node", "id", 1, "", "", None)


def bundle(**values) -> Bundle:
    job = Claimed(1, "k", 1, "eval", {}, {}, timeout_seconds=values.pop("timeout_seconds", None))
    return Bundle(None, {1: job}, WorkerSettings("cpu", 1, "", ""), 1.0, running=job, heard_at=0.0, **values)


def test_a_worker_that_says_nothing():
    frozen = bundle(place=PLACE)
    assert watchdog.stuck(frozen, watchdog.SILENCE_SECONDS) is None
    assert watchdog.stuck(frozen, watchdog.SILENCE_SECONDS + 1) == "its worker on node was silent for 60 seconds"


def test_a_bundle_that_never_began_is_nobodys_fault():
    waiting = bundle()
    assert watchdog.stuck(waiting, watchdog.START_SECONDS) is None
    assert watchdog.stuck(waiting, watchdog.START_SECONDS + 1) == ""


def test_a_job_that_lives_but_does_not_get_on():
    stalled = bundle(place=PLACE)
    stalled.heard_at = stalled.began_at = watchdog.STALL_SECONDS + 1
    assert watchdog.stuck(stalled, watchdog.STALL_SECONDS + 2) == "it made no progress for 24 hours"


def test_a_job_over_its_limit():
    slow = bundle(place=PLACE, timeout_seconds=5.0)
    assert watchdog.overdue(slow, 5.0) is None
    assert watchdog.overdue(slow, 5.1) == 5.0
    assert watchdog.overdue(bundle(place=PLACE), time.monotonic()) is None
