"""A clock that is set forwards and back while drivers run on one machine, with child processes and a real Ray."""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.store.connection import open_store
from tests.helpers.both_ways import both_ways

ROOT = Path(__file__).parents[3]
PROBES, SECONDS = 20, 1.0
STEPS = (3600, 0, -3600, 0, 2)  # seconds that the clock is off by, in turn
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc"),
]

# The command line with a clock of the queue's own that is off by what a file says; so is the time of boot in the table of
# processes, by a file that is mounted over /proc/stat, or where that is not allowed as psutil reads it.
DRIVE = """
import sys, time
from types import SimpleNamespace

import psutil

table, mounted, silence = sys.argv[1], sys.argv[2] == "mounted", float(sys.argv[3])
sys.argv[1:] = sys.argv[4:]
find = lambda path: next(int(line.split()[1]) for line in open(path) if line.startswith("btime"))
began = find(table + ".before")
clock = SimpleNamespace(time=lambda: time.time() + find(table) - began, monotonic=time.monotonic)
if mounted:
    assert find("/proc/stat") == find(table)
else:
    psutil._pslinux.boot_time = lambda: float(find(table))

from robustq.cli import main
from robustq.cluster.driver import leases, watchdog
from robustq.jobs.queue import claims, transitions

transitions.time = claims.time = clock
transitions.BACKOFF_SECONDS, watchdog.SILENCE_SECONDS = 0.5, silence
leases.RENEW_SECONDS = 2.0  # a driver that is slow for three times as long is not dead
main()
"""


def may_mount(table: Path) -> bool:
    """In a user and mount namespace of its own, which not every system grants."""
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-rm", "mount", "--bind", str(table), "/proc/stat"]
    return subprocess.run(tried, capture_output=True, timeout=20).returncode == 0


def set_clock(table: Path, seconds: int) -> None:
    """In one write of the same length, in place: others read the file, and it is mounted."""
    lines = Path(f"{table}.before").read_text().splitlines()
    moved = [f"btime {int(line.split()[1]) + seconds}" if line.startswith("btime") else line for line in lines]
    with open(table, "r+b", buffering=0) as file:
        file.write(("\n".join(moved) + "\n").encode())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    table = tmp_path / "stat"
    for path in (table, Path(f"{table}.before")):
        path.write_bytes(Path("/proc/stat").read_bytes())
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


def submit(path: Path, n: int, seconds: float) -> None:
    store = open_store(str(path), create=True, write=True)
    submit_probes(store, n, seconds=seconds)
    store.engine.dispose()


def begin(table: Path, path: Path, drivers: int, silence: float = 60.0) -> list[subprocess.Popen[bytes]]:
    mounted = may_mount(table)
    mount = ["unshare", "-rm", "sh", "-c", 'mount --bind "$0" /proc/stat && exec "$@"', str(table)] if mounted else []
    words = [str(table), "mounted" if mounted else "told", str(silence), "--store", str(path), "drive"]
    command = [*mount, sys.executable, "-c", DRIVE, *words]
    environment = dict(os.environ)
    return [
        subprocess.Popen(command, cwd=path.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(drivers)
    ]


@contextmanager
def awaited(drivers: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """The end of all of them, after which each has ended well."""
    watchdog = threading.Timer(150, lambda: [driver.send_signal(signal.SIGTERM) for driver in drivers])
    watchdog.start()
    try:
        yield
    finally:
        told = [driver.communicate()[1].decode() for driver in drivers]
        watchdog.cancel()
    assert [driver.returncode for driver in drivers] == [0] * len(drivers), told


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_no_job_is_begun_twice(table: Path, path: Path):
    submit(path, PROBES, SECONDS)
    drivers = begin(table, path, 2)
    with awaited(drivers):
        for step in itertools.cycle(STEPS):
            if all(driver.poll() is not None for driver in drivers):
                break
            set_clock(table, step)
            time.sleep(1.5)
    assert ask(path, "SELECT state, attempt, fence FROM job") == [("done", 1, 1)] * PROBES
    assert ask(path, "SELECT outcome FROM attempt") == [("done",)] * PROBES
    assert ask(path, "SELECT kind FROM event") == []
    assert ask(path, "SELECT count(*) FROM result") == [(PROBES,)]
    assert len(ask(path, "SELECT DISTINCT driver_id FROM attempt")) == 2


@both_ways
def test_a_frozen_worker_is_ended(way: str, table: Path, path: Path, monkeypatch):
    monkeypatch.setenv("ROBUSTQ_RAY", way)
    submit(path, 1, 2.0)
    (driver,) = begin(table, path, 1, silence=12.0)
    with awaited([driver]):
        while not (running := ask(path, "SELECT pid FROM attempt")):
            assert driver.poll() is None
            time.sleep(0.05)
        worker = running[0][0]
        os.kill(worker, signal.SIGSTOP)
        set_clock(table, 3600)
        since = time.monotonic()
        while psutil.pid_exists(worker):
            assert driver.poll() is None and time.monotonic() - since < 60
            time.sleep(0.1)
    assert ask(path, "SELECT state, attempt, crashes FROM job") == [("done", 2, 1)]
    assert ask(path, "SELECT outcome FROM attempt ORDER BY n") == [("crashed",), ("done",)]
