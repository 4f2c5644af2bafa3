"""The store goes or changes under a driver: it stops at once with one line, and keeps what it has where it can."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustq.cluster.driver import drive
from robustq.cluster.driver import loop as dispatch
from robustq.cluster.driver.state import Bundle, Driver
from robustq.cluster.messages import Finished, Place, Started, WorkerSettings
from robustq.cluster.slots import Slots
from robustq.cluster.worker import probed
from robustq.jobs.errors import RobustqError, RunError, StoreError
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.presence import watched
from tests.helpers.both_ways import RAY
from tests.helpers.no_workers import NoWorkers

ROOT = Path(__file__).parents[3]
SETTING = WorkerSettings("cpu", 1, "", "")
JOBS, BEFORE = 6, 3  # of a sweep, and those that are recorded when the store goes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "results.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(str(path), create=True, write=True)
    submit_probes(store, JOBS)
    yield store
    store.engine.dispose()


def run(store: Store, monkeypatch: pytest.MonkeyPatch, mishap: Callable[[], None], early: Callable[[], None]) -> Any:
    """Drive the queue, a job a turn. mishap: comes when BEFORE jobs are recorded.  early: when one is."""
    turns = iter(range(JOBS))

    def launch(driver: Driver, claimed: list[Any]) -> Bundle:
        return Bundle(None, {c.id: c for c in claimed}, SETTING, 1.0)

    def collect(driver: Driver) -> Any:
        turn = next(turns)
        if turn in (1, BEFORE):
            (early if turn == 1 else mishap)()
        bundle = driver.bundles[0]
        job = next(iter(bundle.open.values()))
        frames = [Started(job, Place("here", "", 1, "", "", None)), Finished(job, probed(SETTING), None, ())]
        return [(bundle, frame) for frame in frames], [(bundle, "")] if len(bundle.open) == 1 else []

    monkeypatch.setattr(dispatch, "launch", launch)
    monkeypatch.setattr(dispatch, "collect", collect)
    return drive.work(Driver(store, NoWorkers(), Slots(1, 0, 1), None), lambda counts, costs: None)


def jobs_in(path: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return dict(db.execute("SELECT state, count(*) FROM job GROUP BY state"))


def delete(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        Path(f"{path}{ending}").unlink()


def delete_file_alone(path: Path) -> None:
    path.unlink()


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    other = path.with_name("other.db")
    open_store(str(other), create=True, write=True).engine.dispose()
    delete(path)
    other.rename(path)


def make_a_folder_of_it(path: Path) -> None:
    path.unlink()
    path.mkdir()


def delete_log(path: Path) -> None:
    Path(f"{path}-wal").unlink()


def delete_index(path: Path) -> None:
    Path(f"{path}-shm").unlink()


def empty_anew(path: Path) -> None:
    delete(path)
    path.touch()


GONE = {
    delete: "was deleted or moved away",
    delete_file_alone: "was deleted or moved away",
    move_away: "was deleted or moved away",
    replace: "was replaced by another file",
    make_a_folder_of_it: "was replaced by another file",
    empty_anew: "was replaced by another file",
    delete_log: "lost results.db-wal, which is a part of it while it is open,",
    delete_index: "lost results.db-shm, which is a part of it while it is open,",
}


@pytest.mark.slow
@pytest.mark.parametrize("mishap", GONE, ids=lambda mishap: mishap.__name__)
def test_what_was_recorded_is_kept_beside(mishap, store, path, monkeypatch):
    kept = path.with_name("results.kept.db")
    with pytest.raises(RunError) as error:
        run(store, monkeypatch, lambda: mishap(path), lambda: None)
    assert str(error.value) == (
        f"store {path} {GONE[mishap]} while this run wrote to it: all that was recorded is kept in {kept}: name it with "
        "--store and run the same command again"
    )
    assert jobs_in(kept) == {"done": BEFORE, "queued": JOBS - BEFORE}
    again = open_store(str(kept), write=True)
    monkeypatch.undo()
    assert run(again, monkeypatch, lambda: None, lambda: None)["done"] == JOBS
    again.engine.dispose()
    assert not [file for file in path.parent.iterdir() if file.name.endswith(".part")]


def test_the_file_that_took_its_place_is_left_as_it_is(store, path, monkeypatch):
    found = []

    def mishap() -> None:
        replace(path)
        found.append(path.read_bytes())

    with pytest.raises(RunError):
        run(store, monkeypatch, mishap, lambda: None)
    store.engine.dispose()
    assert path.read_bytes() == found[0] and jobs_in(path) == {}


def test_nothing_is_overwritten_by_what_is_kept(store, path, monkeypatch):
    path.with_name("results.kept.db").write_text("mine")
    with pytest.raises(RunError, match=r"is kept in .*/results\.kept-2\.db: name it"):
        run(store, monkeypatch, lambda: delete(path), lambda: None)
    assert path.with_name("results.kept.db").read_text() == "mine"
    assert jobs_in(path.with_name("results.kept-2.db")) == {"done": BEFORE, "queued": JOBS - BEFORE}


def test_a_folder_that_is_gone_has_it_beside_its_own_place(store, path, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=rf"was deleted or moved away .* kept in {tmp_path}/results\.kept\.db: name it"):
        run(store, monkeypatch, lambda: shutil.rmtree(path.parent), lambda: None)
    assert jobs_in(tmp_path / "results.kept.db") == {"done": BEFORE, "queued": JOBS - BEFORE}
    assert not path.parent.exists()


def test_what_cannot_be_kept_is_told(store, path, monkeypatch):
    monkeypatch.setattr("robustq.jobs.store.presence.write_copy", lambda db, target: os.stat("/nowhere"))
    with pytest.raises(RunError, match=r"could not be kept \(.*No such file.*\): run the same command again$"):
        run(store, monkeypatch, lambda: delete(path), lambda: None)


def test_a_store_lost_with_the_last_job_or_an_interrupt_counts_as_lost(store, path, monkeypatch):
    def mishap() -> None:
        delete(path)
        raise KeyboardInterrupt

    with pytest.raises(RunError, match=r"all that was recorded is kept in"):
        run(store, monkeypatch, mishap, lambda: None)
    again = open_store(str(path.with_name("results.kept.db")), write=True)
    loop = drive.loop

    def to_the_end(driver: Driver, watch: Any) -> Any:
        found = loop(driver, watch)
        delete(path.with_name("results.kept.db"))
        return found

    monkeypatch.undo()
    monkeypatch.setattr(drive, "loop", to_the_end)
    with pytest.raises(RunError, match=r"kept in .*/results\.kept\.kept\.db: name it"):
        run(again, monkeypatch, lambda: None, lambda: None)
    again.engine.dispose()
    assert jobs_in(path.with_name("results.kept.kept.db")) == {"done": JOBS}


def write_over(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def copy_over(path: Path) -> None:
    subprocess.run(["cp", str(path.with_name("early.db")), str(path)], check=True)


def restore_in_sqlite(path: Path) -> None:
    early, now = (sqlite3.connect(file) for file in (path.with_name("early.db"), path))
    with contextlib.closing(early), contextlib.closing(now):
        early.backup(now)


def forget_the_driver(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE job SET lease_owner = NULL")
        db.execute("DELETE FROM attempt")
        db.execute("DELETE FROM driver")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mishap", "what"),
    [
        (write_over, "was overwritten"),
        (lambda path: os.truncate(path, 0), "was overwritten"),
        (lambda path: os.truncate(path, 8192), "was overwritten"),
        (copy_over, "was overwritten"),
        (restore_in_sqlite, "was overwritten by an earlier or another one"),
        (forget_the_driver, "was overwritten by an earlier or another one"),
    ],
    ids=["other bytes", "emptied", "cut off", "an earlier copy", "an earlier copy by sqlite", "another one"],
)
def test_what_is_overwritten_in_place_is_noticed_and_not_written(mishap, what, store, path, monkeypatch):
    def keep_early() -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("VACUUM INTO ?", (str(path.with_name("early.db")),))
            db.execute("CREATE TABLE more (x)")  # the store grows meanwhile, as it does with results

    with pytest.raises(RobustqError) as error:
        run(store, monkeypatch, lambda: mishap(path), keep_early)
    told = str(error.value)
    if isinstance(error.value, StoreError):  # SQLite saw it first
        assert "the file is damaged" in told or "it is no SQLite database" in told
    else:
        assert told == (
            f"store {path} {what} while this run wrote to it: what the run recorded is lost; restore it once more, without "
            "results.db-wal and results.db-shm beside it, and run the same command again"
        )
    if mishap is restore_in_sqlite:
        store.engine.dispose()
        assert jobs_in(path)["done"] == 1  # as it was restored


def test_a_store_at_its_place_is_never_suspected(store, path, monkeypatch):
    """Others write, fold the log into the file, and make it smaller."""

    def others() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("CREATE TABLE more (x)")
            db.execute("INSERT INTO more SELECT zeroblob(1000000)")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.execute("DROP TABLE more")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open_store(str(path)).begin() as db:
            assert counts(db)["done"] >= 1

    assert run(store, monkeypatch, others, others)["done"] == JOBS


@pytest.fixture
def hangup() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_asks_to_end_interrupts(which, store, hangup):
    driver = Driver(store, NoWorkers(), Slots(1, 0, 1), None)
    before = signal.getsignal(which)
    with pytest.raises(KeyboardInterrupt), drive.interruptible(driver):
        os.kill(os.getpid(), which)
        time.sleep(1)
    assert driver.stop_requested and signal.getsignal(which) is before


def test_a_closed_terminal_is_ignored_where_nohup_said_so(store, hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    driver = Driver(store, NoWorkers(), Slots(1, 0, 1), None)
    with drive.interruptible(driver):
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert not driver.stop_requested


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "way"), [("deleted", "0"), ("hung up", "0"), ("terminated", "0"), pytest.param("hung up", "1", marks=RAY)]
)
def test_at_the_command_line(how, way, path, monkeypatch):
    monkeypatch.setenv("ROBUSTQ_RAY", way)
    store = open_store(str(path), create=True, write=True)
    submit_probes(store, 200, seconds=0.1)
    store.engine.dispose()
    command = [sys.executable, "-m", "robustq", "--store", str(path), "drive"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, driver.kill)
    watchdog.start()
    done = 0
    while driver.poll() is None and not (done := jobs_in(path).get("done", 0)):
        time.sleep(0.1)
    if how == "deleted":
        shutil.rmtree(path.parent)
    else:
        driver.send_signal({"hung up": signal.SIGHUP, "terminated": signal.SIGTERM}[how])
    since = time.monotonic()
    out, told = driver.communicate()
    watchdog.cancel()
    assert time.monotonic() - since < 20  # seconds, most of which Ray takes to end
    line = told.splitlines()[-1]
    if how == "deleted":
        found = re.fullmatch(r"robustq: store .* all that was recorded is kept in (.*): name it .*", line)
        assert found and driver.returncode == 2 and out == ""
        path = Path(found[1])
    else:
        assert line.startswith("robustq: stopped; the queue is intact. Go on with: ") and driver.returncode == 1
    left = jobs_in(path)
    assert left["done"] >= done and left == {"done": left["done"], "queued": 200 - left["done"]}


def test_a_connection_that_an_interrupt_closes_is_no_loss(store: Store):
    """Were it the only one, SQLite would tidy up its log."""
    with watched(store) as file:
        assert file is not None
        with store.engine.connect() as db:
            counts(db)
            db.invalidate()  # as SQLAlchemy does when an interrupt comes in the middle of a statement
        assert file.changed() is None
