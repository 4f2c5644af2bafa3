"""What a GPU does to jobs is not booked as their own end, and a GPU on which they keep dying is given up.

No GPU is at work here: a driver is handed the frames that a worker would send.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from robustq.cluster.bad_gpus import MOST, BadGpus
from robustq.cluster.driver import drive
from robustq.cluster.driver.gpu_health import check_gpus
from robustq.cluster.driver.loop import loop, record
from robustq.cluster.driver.state import Bundle, Driver
from robustq.cluster.messages import Failed, Finished, GpuMemory, Refused, Started, WorkerSettings
from robustq.cluster.slots import Slots
from robustq.jobs.commands.queue_actions import status_text
from robustq.jobs.errors import RunError
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import bad_gpus, counts, job_log
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import job
from tests.helpers.gpu_errors import ASSERT, BUSY, ECC, FIRST, ON_GPU, SECOND, a_job, place, raised
from tests.helpers.no_workers import NoWorkers


def test_a_gpu_is_given_up_after_a_few_failures_in_a_row():
    gpus = BadGpus()
    assert [gpus.failed(FIRST, a_job(n), raised(n, "unfit")) for n in (1, 2)] == [False, False]
    gpus.worked(FIRST)
    assert [gpus.failed(FIRST, a_job(n), raised(n, "unfit")) for n in (3, 4, 5, 6)] == [False, False, True, False]
    assert gpus.told(FIRST) == (
        f"GPU 0 of here is given up for the rest of this run: {MOST} failures in turn there, "
        "last: AcceleratorError: CUDA error: uncorrectable ECC error encountered"
    )


def test_one_model_alone_does_not_give_up_a_gpu():
    """Its kernels may be what loses the context; three models are another matter."""
    gpus = BadGpus()
    assert not any(gpus.failed(FIRST, a_job(n), raised(n, "lost")) for n in range(10))
    assert not gpus.failed(FIRST, a_job(11, "b"), raised(11, "lost"))
    assert gpus.failed(FIRST, a_job(12, "c"), raised(12, "lost"))


def test_a_model_that_fails_on_every_gpu_is_evidence_against_none():
    gpus = BadGpus()
    for number, model in enumerate("abc"):
        for gpu in (FIRST, SECOND):
            assert not gpus.failed(gpu, a_job(number, model), raised(number, "lost", model))
    assert not any(gpus.failed(FIRST, a_job(n), raised(n, "asserted", str(n))) for n in range(9))
    assert gpus.bad == {}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    submit_probes(store, 6)
    yield store
    store.engine.dispose()


@pytest.fixture
def driver(store: Store, monkeypatch) -> Driver:
    monkeypatch.setattr(transitions, "BACKOFF_SECONDS", 0.0)
    found = Driver(store, NoWorkers(), Slots(1, 1, 1), None)
    with store.begin() as db:
        found.beat_at = drivers.register(db, found.id, "here", 1, 0.0, "0")
    return found


def sent(driver: Driver, gpu: tuple[str, str], share: float = 1.0) -> tuple[Bundle, Claimed]:
    """A bundle of two jobs at work on a GPU, with its first one."""
    with driver.store.begin() as db:
        claimed = claim(db, driver.id, most=2)
    settings = WorkerSettings("cuda", 1, "", "", share)
    bundle = Bundle(None, {c.id: c for c in claimed}, settings, share)
    driver.bundles.append(bundle)
    record(driver, [(bundle, Started(claimed[0], place(gpu)))], [])
    return bundle, claimed[0]


def test_what_the_gpu_did_is_tried_again_five_times(driver: Driver, store: Store):
    log: dict[str, Any] = {}
    for n in range(1, 6):
        bundle, first = sent(driver, FIRST)
        record(driver, [(bundle, Failed(first, "AcceleratorError", ASSERT, "trace", gpu="asserted"))], [(bundle, "")])
        with store.begin() as db:
            log = job_log(db, first.id)
        assert (log["state"], log["crashes"]) == ("queued" if n < 5 else "failed", n)
        assert counts_of(store)["queued"] == (6 if n < 5 else 5)  # also the one that shared its bundle
        driver.store.write(lambda db, first=first: db.execute(sa.update(job).values(priority=job.c.id == first.id)))
    assert log["error_class"] == "AcceleratorError"
    assert log["error_message"].startswith("it failed on a GPU 5 times, last: AcceleratorError: CUDA error: device-")
    assert log["attempts"][-1]["traceback"] == "trace"


def counts_of(store: Store) -> dict[str, int]:
    with store.begin() as db:
        return counts(db)


def test_a_bad_gpu_is_named_and_does_not_empty_the_queue(driver: Driver, store: Store):
    told: list[str] = []
    driver.tell = told.append
    for _ in range(MOST):
        bundle, first = sent(driver, FIRST)
        record(driver, [(bundle, Failed(first, "AcceleratorError", ECC, "", gpu="unfit"))], [(bundle, "")])
    assert len(told) == 1 and told[0].startswith(
        "GPU 0 of here is given up for the rest of this run: 3 failures in turn"
    )
    with store.begin() as db:
        assert bad_gpus(db) == told
    assert told[0] in status_text(store, None, as_json=False)
    # The next bundle comes there too, and keeps its place: with that no GPU is left.
    with store.begin() as db:
        claimed = claim(db, driver.id, most=2)
    bundle = Bundle(None, {c.id: c for c in claimed}, ON_GPU, 1.0)
    driver.bundles.append(bundle)
    record(driver, [(bundle, Refused(place(FIRST)))], [])
    assert (driver.bundles, driver.blocked, driver.free_slots) == ([], [bundle], 0)
    with pytest.raises(RunError, match=r"no GPU is left that jobs do not fail on \(GPU 0 of here: AcceleratorError"):
        check_gpus(driver)
    with pytest.raises(RunError, match="the jobs that are left are still queued"):
        loop(driver, lambda counts, costs: None)
    assert counts_of(store) == dict.fromkeys(counts_of(store), 0) | {"queued": 6}
    with store.begin() as db:
        drivers.stop(db, driver.id)
        assert bad_gpus(db) == []  # that was for its run


@pytest.mark.parametrize(("share", "after"), [(0.125, 0.25), (0.5, 1.0)])
def test_memory_that_ran_out_takes_a_larger_share(share: float, after: float, driver: Driver, store: Store):
    bundle, first = sent(driver, FIRST, share)
    record(driver, [(bundle, Failed(first, "OutOfMemoryError", "CUDA out of memory", "", out_of_memory=True))], [])
    with store.begin() as db:
        log = job_log(db, first.id)
    assert (log["state"], log["gpu_share"], log["crashes"]) == ("queued", after, 0)


@pytest.mark.parametrize("gpu", [None, "crowded"])
def test_memory_that_ran_out_on_a_whole_gpu_is_no_end_for_good(gpu: Any, driver: Driver, store: Store):
    bundle, first = sent(driver, FIRST)
    failed = Failed(first, "OutOfMemoryError", "CUDA out of memory", "trace", out_of_memory=True, gpu=gpu)
    record(driver, [(bundle, failed)], [])
    with store.begin() as db:
        log = job_log(db, first.id)
    assert (log["state"], log["crashes"], log["attempts"][0]["outcome"]) == ("queued", 1, "crashed")
    assert len(driver.gpus.failures.get(FIRST, {})) == (gpu is not None)


def test_a_gpu_that_is_given_up_is_no_part_of_a_slot(driver: Driver):
    """Were the rest of it counted as free, jobs that need a whole GPU would be waited for for ever."""
    driver.slots = Slots(2, 1, 1)
    driver.blocked = [Bundle(None, {}, ON_GPU, 0.125, place=place(FIRST)) for _ in range(3)]
    driver.bundles = [
        Bundle(None, {}, ON_GPU, 0.25, place=place(FIRST)),  # began there before
        Bundle(None, {}, ON_GPU, 0.5, place=place(SECOND)),
    ]
    assert driver.free_slots == 0.5
    driver.bundles.append(Bundle(None, {}, ON_GPU, 0.25))  # on its way
    assert driver.free_slots == 0.25


def test_memory_that_ran_out_on_a_cpu_is_the_jobs_own_end(driver: Driver, store: Store):
    """Five tries would be hours of work for the same end."""
    bundle, first = sent(driver, FIRST)
    bundle.settings = WorkerSettings("cpu", 1, "", "")
    record(driver, [(bundle, Failed(first, "MemoryError", "", "trace", out_of_memory=True))], [])
    with store.begin() as db:
        assert job_log(db, first.id)["state"] == "failed"


def test_a_worker_that_dies_right_after_it_refused_keeps_no_place(driver: Driver, store: Store):
    with store.begin() as db:
        claimed = claim(db, driver.id, most=2)
    bundle = Bundle(None, {c.id: c for c in claimed}, ON_GPU, 1.0)
    driver.bundles.append(bundle)
    record(driver, [(bundle, Refused(place(FIRST)))], [(bundle, "WorkerCrashedError")])
    assert (driver.bundles, driver.blocked, driver.free_slots) == ([], [], 1)
    assert driver.gpus.failures == {} and counts_of(store)["queued"] == 6


def test_a_gpu_that_is_given_up_stays_named_after_a_restart_of_ray(driver: Driver, store: Store, monkeypatch):
    driver.gpus.bad[FIRST] = "AcceleratorError: \x1b[31mecc\n at postgresql://me:secret@host/db"
    with store.begin() as db:
        drivers.stop(db, driver.id)
    after, named = Driver(store, NoWorkers(), Slots(1, 1, 1), None, gpus=driver.gpus), list[list[str]]()

    def look(driver: Driver, watch: Any) -> dict[str, int]:
        with store.begin() as db:
            named.append(bad_gpus(db))
        return {}

    monkeypatch.setattr(drive, "loop", look)
    drive.work(after, lambda counts, costs: None)
    ((told,),) = named
    assert told.startswith("GPU 0 of here is given up") and told.endswith("postgresql://me:***@host/db")
    assert "\x1b" not in told and "\n" not in told and "secret" not in told


def test_one_job_too_large_for_what_others_leave_gives_up_no_gpu():
    gpus = BadGpus()
    assert not any(gpus.failed(FIRST, a_job(1), raised(1, "crowded")) for _ in range(5))
    others = [gpus.failed(FIRST, a_job(n, str(n)), raised(n, "crowded", str(n))) for n in (2, 3)]
    assert others == [False, True]


@pytest.mark.parametrize("gpu", ["crowded", "unbuilt"])
def test_one_model_that_is_too_large_or_built_for_others_gives_up_no_gpu(gpu: Any):
    gpus = BadGpus()
    for n in range(1, 9):
        assert not gpus.failed(FIRST, a_job(n), raised(n, gpu))
        assert not gpus.failed(SECOND, a_job(n + 10), raised(n + 10, gpu))
    assert gpus.bad == {}


def test_a_gpu_in_exclusive_mode_gets_one_process(driver: Driver, store: Store):
    told: list[str] = []
    driver.tell = told.append
    for _ in range(2 * MOST):
        with store.begin() as db:
            db.execute(sa.update(job).values(gpu_share=0.25))
        bundle, first = sent(driver, FIRST, 0.25)
        record(driver, [(bundle, Failed(first, "AcceleratorError", BUSY, "", gpu="busy"))], [(bundle, "")])
        with store.begin() as db:
            log = job_log(db, first.id)
        assert (log["state"], log["crashes"]) == ("queued", 0)
    assert told == ["GPU 0 of here takes one process at a time (its exclusive mode): each bundle gets a GPU of its own"]
    assert (driver.slots.shared, driver.slots.share(0.25), driver.slots.smallest, driver.gpus.bad) == (False, 1, 1, {})
    # One that refuses a process that would be alone is no use to anybody.
    for _ in range(MOST):
        bundle, first = sent(driver, FIRST, 1.0)
        record(driver, [(bundle, Failed(first, "AcceleratorError", BUSY, "", gpu="busy"))], [(bundle, "")])
    assert list(driver.gpus.bad) == [FIRST]


def test_a_share_is_one_of_the_smallest_gpu_that_was_met(driver: Driver, store: Store):
    """12 GB with what is to spare are a quarter of 80 GB, and all of 16."""
    for total, share in ((80, 1 / 4), (16, 1.0), (80, 1.0)):
        with store.begin() as db:
            db.execute(sa.update(job).values(gpu_share=None))
        bundle, first = sent(driver, FIRST)
        memory = GpuMemory(12 * 2**30, total * 2**30)
        probed = {"n": 0, "seconds": 0.0, "device": "cuda", "versions": {}}
        record(driver, [(bundle, Finished(first, probed, None, (), memory))], [(bundle, "")])
        with store.begin() as db:
            known = (job.c.state == "queued") & job.c.gpu_share.is_not(
                None
            )  # not of the one that it shared a bundle with
            assert set(db.execute(sa.select(job.c.gpu_share).where(known)).scalars()) == {share}
