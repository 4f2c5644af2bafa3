"""Which bundles are taken for stuck: by a clock that the test turns, without Ray."""

import time

from cluster import health
from cluster.bundle import Place, Setting
from cluster.driver import Bundle
from jobs.queue import Claimed

PLACE = Place("node", "id", 1, "", "", None)


def bundle(**values) -> Bundle:
    job = Claimed(1, "k", 1, "eval", {}, {}, timeout_seconds=values.pop("timeout_seconds", None))
    return Bundle(None, {1: job}, Setting("cpu", 1, "", ""), 1.0, running=job, heard_at=0.0, **values)


def test_a_worker_that_says_nothing():
    frozen = bundle(place=PLACE)
    assert health.stuck(frozen, health.SILENCE_SECONDS) is None
    assert health.stuck(frozen, health.SILENCE_SECONDS + 1) == "its worker on node was silent for 60 seconds"


def test_a_bundle_that_never_began_is_nobodys_fault():
    waiting = bundle()
    assert health.stuck(waiting, health.START_SECONDS) is None
    assert health.stuck(waiting, health.START_SECONDS + 1) == ""


def test_a_job_that_lives_but_does_not_get_on():
    stalled = bundle(place=PLACE)
    stalled.heard_at = stalled.began_at = health.STALL_SECONDS + 1
    assert health.stuck(stalled, health.STALL_SECONDS + 2) == "it made no progress for 24 hours"


def test_a_job_over_its_limit():
    slow = bundle(place=PLACE, timeout_seconds=5.0)
    assert health.overdue(slow, 5.0) is None
    assert health.overdue(slow, 5.1) == 5.0
    assert health.overdue(bundle(place=PLACE), time.monotonic()) is None
