"""Who may take whose jobs: by clocks and a table of processes that the test turns. No live driver's job is taken."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy import select

from robustlib import VERSION
from robustq.cluster.driver import drive, leases, loop, watchdog
from robustq.cluster.driver.state import Bundle, Driver
from robustq.cluster.messages import Finished, Place, Started, WorkerSettings
from robustq.cluster.process_identity import identity
from robustq.cluster.slots import Slots
from robustq.cluster.worker import probed
from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import attempt, event, job, result
from robustq.jobs.store.schema import driver as driver_table
from tests.helpers.no_workers import NoWorkers

HOUR = 3600.0
JOBS = 4
SETTING = WorkerSettings("cpu", 1, "", "")


class Clock:
    """Stands in for the module `time` where it is decided on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.since = time.time(), 1000.0
        for module in (transitions, drivers, claims, leases, watchdog):
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.since

    def sleep(self, seconds: float) -> None:
        self.wall += seconds
        self.since += seconds

    def set(self, seconds: float) -> None:
        """As by hand or by NTP."""
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(str(tmp_path / "results.db"), create=True, write=True)
    submit_probes(store, JOBS)
    yield store
    store.engine.dispose()


def joined(store: Store, process: str | None = None) -> Driver:
    """A driver on another machine, unless it has a process."""
    driver = Driver(store, NoWorkers(), Slots(1, 0, 1), None)
    with store.begin() as db:
        driver.beat_at = drivers.register(db, driver.id, "here", os.getpid(), 0.0, VERSION, process)
    return driver


def begun(driver: Driver) -> transitions.Claimed:
    with driver.store.begin() as db:
        (claimed,) = claims.claim(db, driver.id, most=1)
        assert transitions.start(db, claimed, driver.id, "node", 1, "")
    return claimed


def ended(driver: Driver, claimed: transitions.Claimed) -> bool:
    with driver.store.begin() as db:
        return transitions.finish(db, claimed, probed(SETTING))


def look(*at_work: Driver) -> None:
    for driver in at_work:
        with driver.store.begin() as db:
            leases.keep_leases(db, driver)


def states(store: Store) -> dict[str, int]:
    with store.begin() as db:
        return {state: n for state, n in counts(db).items() if n}


def computed_once(store: Store) -> None:
    with store.begin() as db:
        rows = db.execute(select(job.c.state, job.c.attempt, job.c.fence)).all()
        assert rows == [("done", 1, 1)] * JOBS
        assert db.execute(select(attempt.c.outcome)).scalars().all() == ["done"] * JOBS
        assert len(db.execute(select(result)).all()) == JOBS
        assert db.execute(select(event.c.kind)).scalars().all() == []


def table(folder: Path) -> Path:
    """The process table as psutil is to see it, with a time of boot that can be set."""
    folder.mkdir()
    for name in ("self", str(os.getpid())):
        (folder / name).symlink_to(f"/proc/{name}")
    return folder


def set_boot(folder: Path, seconds: float) -> None:
    lines = Path("/proc/stat").read_text().splitlines()
    stepped = [f"btime {int(line.split()[1]) + round(seconds)}" if line[:5] == "btime" else line for line in lines]
    (folder / "stat").write_text("\n".join(stepped) + "\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("steps", [[HOUR], [-HOUR], [1.5, -3.0], [HOUR, -HOUR, 86400.0]], ids=str)
def test_a_time_of_boot_that_moves_takes_no_job_from_its_driver(steps, store, tmp_path, monkeypatch):
    """It moves whenever the clock is set. A driver took itself for dead then, and began its jobs anew for ever."""
    folder, turns = table(tmp_path / "proc"), iter(range(6 * JOBS))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(folder))
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(loop, "launch", lambda driver, jobs: Bundle(None, {c.id: c for c in jobs}, SETTING, 1.0))
    set_boot(folder, 0.0)
    place = Place("here", "", 1, "", "", None)

    def collect(driver: Driver) -> Any:
        turn = next(turns)  # fails where jobs begin anew
        (bundle,) = driver.bundles
        claimed = next(iter(bundle.open.values()))
        if turn % 3 == 0:
            return [(bundle, Started(claimed, place))], []
        if turn % 3 == 1:
            set_boot(folder, steps[(turn // 3) % len(steps)])
            with store.begin() as db:  # a neighbour on the same machine, that looks now
                drivers.reclaim(db, leases.dead_drivers(db))
            return [], []
        return [(bundle, Finished(claimed, probed(SETTING), None, ()))], [(bundle, "")] if len(bundle.open) == 1 else []

    monkeypatch.setattr(loop, "collect", collect)
    drive.work(Driver(store, NoWorkers(), Slots(1, 0, 1), None), lambda counts, costs: None)
    computed_once(store)
    with store.begin() as db:
        assert db.execute(select(driver_table.c.process)).scalars().all() == [identity(os.getpid())]


@pytest.mark.parametrize("step", [HOUR, -HOUR, 365 * 24 * HOUR])
def test_a_clock_that_is_set_costs_one_driver_nothing(step: float, store: Store, clock: Clock):
    driver = joined(store)
    for _ in range(JOBS):
        claimed = begun(driver)
        look(driver)
        clock.set(step)
        assert ended(driver, claimed) or pytest.fail("a lease that ran out is still its driver's")
    computed_once(store)


def test_a_lease_that_ran_out_by_the_clock_is_renewed(store: Store, clock: Clock):
    driver = joined(store)
    claimed = begun(driver)
    clock.set(HOUR)
    look(driver)
    with store.begin() as db:
        until = db.execute(select(job.c.lease_expires_at).where(job.c.id == claimed.id)).scalar_one()
    assert until == clock.time() + transitions.LEASE_SECONDS
    assert ended(driver, claimed)


@pytest.mark.slow
@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_that_is_set_takes_no_job_from_another_driver(step: float, store: Store, clock: Clock):
    """Whoever looks first after the step: neither has heard of it."""
    one, two = joined(store), joined(store)
    for first, second in ((one, two), (two, one)):
        jobs = [begun(one), begun(two)]
        for _ in range(8):
            look(first, second)
            clock.sleep(leases.RENEW_SECONDS + 1)
        clock.set(step)
        for _ in range(8):
            look(first, second)
            clock.sleep(leases.RENEW_SECONDS + 1)
        assert ended(one, jobs[0]) and ended(two, jobs[1])
    computed_once(store)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_machines_whose_clocks_differ_share_a_store(ahead: float, store: Store, clock: Clock):
    one, two = joined(store), joined(store)
    for _ in range(JOBS // 2):
        mine = begun(one)
        clock.set(ahead)
        others = begun(two)
        for _ in range(8):
            look(two)
            clock.set(-ahead)
            look(one)
            clock.sleep(leases.RENEW_SECONDS + 1)
            clock.set(ahead)
        assert ended(two, others)
        clock.set(-ahead)
        assert ended(one, mine)
    computed_once(store)


def test_a_driver_that_begins_after_the_clock_was_set_takes_nothing(store: Store, clock: Clock, monkeypatch):
    """It has watched nobody yet."""
    claimed = [begun(joined(store)) for _ in range(JOBS)]
    clock.set(HOUR)
    monkeypatch.setattr(drive, "child_workers", lambda *given: pytest.fail("end here"))
    with pytest.raises(pytest.fail.Exception, match="end here"):
        drive.drive(store, slots=Slots(1, 0, 1))
    assert states(store) == {"running": JOBS}
    with store.begin() as db:
        assert all(transitions.finish(db, one, probed(SETTING)) for one in claimed)
    computed_once(store)


@pytest.mark.parametrize(("step", "looks"), [(HOUR, 1 + 3), (0.0, 1 + 6), (-HOUR, 1 + 6)])
def test_a_driver_that_says_nothing_loses_its_jobs(step: float, looks: int, store: Store, clock: Clock):
    """After three renewals missed where the clock too says that its lease ran out, and after six whatever it says."""
    begun(joined(store))
    clock.set(step)
    watcher = joined(store)
    for n in range(looks):
        assert states(store).get("running", 0) == 1, f"taken after {n} looks"
        look(watcher)
        look(watcher)  # which is too soon to be one
        clock.sleep(leases.RENEW_SECONDS + 1)
    assert states(store) == {"queued": JOBS}


def test_whoever_slept_counts_no_silence(store: Store, clock: Clock):
    """A machine that was suspended, or processes that were stopped: nobody gave a sign of life meanwhile."""
    one, two = joined(store), joined(store)
    claimed = begun(one)
    for _ in range(2):
        look(one, two)
        clock.sleep(leases.RENEW_SECONDS + 1)
    for _ in range(5):
        clock.sleep(HOUR)
        look(two, one)
    assert ended(one, claimed)


def test_a_driver_that_was_killed_here_loses_its_jobs_at_once(store: Store):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = joined(store, identity(process.pid))
    with store.begin() as db:
        db.execute(sa.update(driver_table).values(pid=process.pid))
        assert leases.dead_drivers(db) == []
    begun(dead)
    process.kill()
    process.communicate()
    with store.begin() as db:
        assert leases.dead_drivers(db) == [dead.id]
    look(joined(store))
    assert states(store) == {"queued": JOBS}


def test_no_driver_takes_itself_for_dead(store: Store, monkeypatch):
    """Whatever it is told of its own process."""
    monkeypatch.setattr(leases, "is_gone", lambda pid, told: True)
    driver = joined(store, "x")
    claimed = begun(driver)
    look(driver)
    assert ended(driver, claimed)


@pytest.mark.parametrize("process", [None, "", "another-boot pid:[4026531836] time:[4026531834] 100"])
def test_drivers_of_other_places_and_older_versions_keep_their_leases(process, store: Store, clock: Clock):
    begun(joined(store, process))
    watcher = joined(store)
    for _ in range(1 + 6):
        assert states(store) == {"running": 1, "queued": JOBS - 1}
        look(watcher)
        clock.sleep(leases.RENEW_SECONDS + 1)
    assert states(store) == {"queued": JOBS}


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_job_that_crashed_waits_no_longer_where_the_clock_is_set_back(step: float, store: Store, clock: Clock):
    driver = joined(store)
    with store.begin() as db:
        db.execute(sa.update(job).where(job.c.id > 1).values(state="done"))
    claimed = begun(driver)
    with store.begin() as db:
        transitions.crash(db, claimed, "killed")
        assert claims.claim(db, driver.id, most=1) == []
    clock.set(step)
    begun(driver)


def test_no_pause_is_longer_than_the_longest(store: Store, clock: Clock):
    driver = joined(store)
    with store.begin() as db:
        db.execute(sa.update(job).values(max_crashes=99))
    for crashes in range(1, 12):
        claimed = begun(driver)
        with store.begin() as db:
            transitions.crash(db, claimed, "killed")
            pause = db.execute(select(job.c.not_before).where(job.c.id == claimed.id)).scalar_one() - clock.time()
            db.execute(sa.update(job).where(job.c.id != claimed.id).values(state="done"))
            assert claims.claim(db, driver.id, most=1) == []
        assert pause == pytest.approx(min(5.0 * 2 ** (crashes - 1), 60.0))
        clock.sleep(pause + 0.01)


def test_a_driver_that_slept_counts_no_time_against_its_jobs(store: Store, clock: Clock):
    """Its workers may have slept with it: a container that is paused."""
    driver = joined(store)
    claimed = transitions.Claimed(1, "k", 1, "eval", {}, {}, timeout_seconds=600.0)
    bundle = Bundle(None, {1: claimed}, SETTING, 1.0, running=claimed, place=Place("n", "", 1, "", "", None))
    driver.checked_at = bundle.heard_at = bundle.began_at = bundle.progressed_at = clock.monotonic()
    driver.bundles.append(bundle)
    clock.sleep(10 * 24 * HOUR)
    with store.begin() as db:
        watchdog.end_stuck(db, driver)
    assert driver.bundles == [bundle]
    for _ in range(601):
        clock.sleep(1)
        bundle.heard_at = clock.monotonic()
        with store.begin() as db:
            watchdog.end_stuck(db, driver)
    assert driver.bundles == []
