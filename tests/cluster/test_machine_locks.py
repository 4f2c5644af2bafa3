"""Runs of one user on one machine: who is told of whom, and who waits for whom."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from robustq.cluster import machine_locks, this_machine
from robustq.cluster.driver.drive import drive
from robustq.cluster.machine_locks import CPUS, Neighbours, free_of, one_start_at_a_time, runtime_folder
from robustq.cluster.ray_connection import lean
from robustq.cluster.slots import Slots
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.store.connection import open_store

HOLD = """
import sys
from robustq.cluster.machine_locks import Neighbours
with Neighbours([sys.argv[1]], print):
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"robustq-{os.getuid()}"


@contextmanager
def another(what: str) -> Iterator[tuple[int, list[str]]]:
    """A run of another process, with what it was told; it is killed in the end."""
    command = [sys.executable, "-c", HOLD, what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, list(iter(process.stdout.readline, "there\n"))
        process.kill()


def test_each_of_two_runs_on_a_gpu_is_told_of_the_other_once(folder: Path):
    told: list[str] = []
    line = "another robustq run (process {}) is at work on GPU 0 too: each takes longer"
    with Neighbours(["0", "GPU-5e2/x"], told.append) as first:
        with another("1") as (_, there):
            first.look()
            assert told == there == []
        with another("0") as (pid, there):
            first.look()
            first.look()
            assert told == [line.format(pid)] and there == [line.format(os.getpid()) + "\n"]
    assert sorted(path.name.split("-")[1][:2] for path in folder.glob("*.run")) == ["0.", "1."]  # killed, both
    assert free_of(["0", "1"]) == ["0", "1"]
    assert list(folder.glob("*.run")) == []


def test_a_second_run_takes_the_gpus_that_are_free(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(this_machine, "gpu_ids", lambda: ["0", "1", "2"])
    told: list[str] = []
    slots = Slots(3, 1, 5)
    assert taken(slots, told) is slots and told == []
    with another("1") as (pid, _):
        assert taken(slots, told) == Slots(2, 1, 5, gpus="0,2")
        assert told == ["GPU 0, 2 of 0, 1, 2 is used: other robustq runs are on the rest"]
        one = Slots(1, 1, 5, gpus="1")
        assert taken(one, told) is one  # none is free: they share it, and are told
        assert told[1:] == [f"another robustq run (process {pid}) is at work on GPU 1 too: each takes longer"]
    with another("0"):
        assert taken(Slots(1, 1, 5), told) == Slots(1, 1, 5, gpus="1") and len(told) == 2  # it has all that it wants
    assert taken(Slots(2, 0, 1), told) == Slots(2, 0, 1)


def taken(slots: Slots, told: list[str]) -> Slots:
    """The slots that a run gets, which ends at once."""
    with Neighbours(this_machine.gpus_of(slots) or [CPUS], told.append, most=slots.count) as found:
        return this_machine.on_those(slots, found.what, told.append)


@pytest.mark.slow
def test_runs_that_start_at_once_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch):
    """Each has looked before any has taken, were it not for the lock."""
    looked = machine_locks.users_of

    def slowly(*given: Any) -> list[int]:
        found = looked(*given)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(machine_locks, "users_of", slowly)
    there, told = threading.Barrier(4), list[str]()
    got: list[str] = []

    def run() -> None:
        there.wait()
        with Neighbours(["0", "1", "2", "3"], told.append, most=1) as found:
            got.extend(found.what)
            there.wait()

    runs = [threading.Thread(target=run) for _ in range(4)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert (sorted(got), told) == (["0", "1", "2", "3"], [])


def test_who_was_stopped_while_it_looked_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_locks, "TAKE_SECONDS", 0.05)
    with machine_locks.one_looks_at_a_time(runtime_folder()), Neighbours(["0", "1"], print, most=1) as found:
        assert found.what == ["0"] and len(list(folder.glob("gpu-0.*.run"))) == 1


def test_who_is_just_taking_its_place_keeps_it(folder: Path):
    """Its file is made before it is locked: a run that looked in between removed it, and nobody knew of the other."""
    with Neighbours(["0"], print) as first:
        coming = folder / "gpu-0.999999-1.run"
        with machine_locks.one_looks_at_a_time(folder):
            coming.touch()
            first.look()
            assert coming.exists()
        first.look()
        assert not coming.exists()  # nobody is about to take it: it was left by one that was killed


@pytest.mark.slow
def test_a_drive_is_told_of_another_one(tmp_path: Path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    sweep_id, told = submit_probes(store, 1, seconds=0.0), list[str]()
    with another(CPUS) as (pid, _):
        assert drive(store, sweep_id=sweep_id, slots=Slots(1, 0, 1), tell=told.append)["done"] == 1
    assert told == [
        f"another robustq run (process {pid}) is at work on the CPUs of this machine too: each takes longer"
    ]
    store.engine.dispose()


@pytest.mark.slow
def test_one_ray_starts_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_locks, "SOON_SECONDS", 0.1)
    order, told, inside = [], list[str](), threading.Event()

    def first() -> None:
        with one_start_at_a_time(told.append):
            inside.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with one_start_at_a_time(told.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert told == ["another robustq run is starting Ray on this machine: waiting for it"]


def test_a_start_that_never_ends_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_locks, "SOON_SECONDS", 0.01)
    monkeypatch.setattr(machine_locks, "START_SECONDS", 0.1)
    told: list[str] = []
    with one_start_at_a_time(told.append), one_start_at_a_time(told.append):
        assert len(told) == 1


def test_a_folder_that_others_can_write_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch):
    folder.mkdir()
    folder.chmod(0o777)
    assert runtime_folder() is None
    with one_start_at_a_time(print), Neighbours(["0"], print):
        assert list(folder.iterdir()) == [] and free_of(["0"]) == ["0"]
    folder.chmod(0o700)
    assert runtime_folder() == folder
    monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    assert runtime_folder() != folder


def test_a_ray_of_this_machine_starts_without_what_a_cluster_needs():
    """By a stand-in for Ray's own class, which is there again after the start, or has other methods in another version."""

    class Node:
        def start_api_server(self, *, include_dashboard: bool) -> str:
            return "dashboard"

        def start_raylet(self) -> str:
            return "raylet"

    ray = SimpleNamespace(_private=SimpleNamespace(node=SimpleNamespace(Node=Node)))
    with lean(ray):
        assert Node().start_api_server(include_dashboard=False) is None and Node().start_raylet() == "raylet"
        assert not hasattr(Node, "start_log_monitor")
    assert Node().start_api_server(include_dashboard=False) == "dashboard"
