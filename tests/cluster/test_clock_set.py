"""A clock that is set forwards and back while two drivers run on one machine, with real Ray: no job is begun twice."""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from jobs.engine import open_store
from jobs.probe import submit_probes

ROOT = Path(__file__).parents[2]
PROBES, SECONDS = 20, 1.0
STEPS = (3600, 0, -3600, 0, 2)  # seconds that the clock is off by, in turn
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc"),
]

# The command line with a clock of the queue's own that is off by what a file says; so is the time of boot in the table of
# processes, by a file that is mounted over /proc/stat, or where that is not allowed as psutil reads it.
DRIVE = """
import sys, time
from types import SimpleNamespace

import psutil

table, mounted = sys.argv[1], sys.argv[2] == "mounted"
sys.argv[1:] = sys.argv[3:]
find = lambda path: next(int(line.split()[1]) for line in open(path) if line.startswith("btime"))
began = find(table + ".before")
clock = SimpleNamespace(time=lambda: time.time() + find(table) - began, monotonic=time.monotonic)
if mounted:
    assert find("/proc/stat") == find(table)
else:
    psutil._pslinux.boot_time = lambda: float(find(table))

from cli import main
from cluster import leases
from jobs import claims, queue

queue.time = claims.time = clock
leases.RENEW_SECONDS = 1.0
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


def test_no_job_is_begun_twice(table: Path, tmp_path: Path):
    path = tmp_path / "results.db"
    store = open_store(str(path), create=True, write=True)
    submit_probes(store, PROBES, seconds=SECONDS)
    store.engine.dispose()
    mounted = may_mount(table)
    mount = ["unshare", "-rm", "sh", "-c", 'mount --bind "$0" /proc/stat && exec "$@"', str(table)] if mounted else []
    words = [str(table), "mounted" if mounted else "told", "--store", str(path), "drive"]
    command = [*mount, sys.executable, "-c", DRIVE, *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    drivers = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    watchdog = threading.Timer(150, lambda: [driver.send_signal(signal.SIGTERM) for driver in drivers])
    watchdog.start()
    try:
        for step in itertools.cycle(STEPS):
            if all(driver.poll() is not None for driver in drivers):
                break
            set_clock(table, step)
            time.sleep(1.5)
    finally:
        watchdog.cancel()
        told = [driver.communicate()[1].decode() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT state, attempt, fence FROM job").fetchall() == [("done", 1, 1)] * PROBES
        assert db.execute("SELECT outcome FROM attempt").fetchall() == [("done",)] * PROBES
        assert db.execute("SELECT kind FROM event").fetchall() == []
        assert db.execute("SELECT count(*) FROM result").fetchone() == (PROBES,)
        assert len(db.execute("SELECT DISTINCT driver_id FROM attempt").fetchall()) == 2
