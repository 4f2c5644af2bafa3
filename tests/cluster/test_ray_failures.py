"""Ray dies under a run: it is started anew, the work goes on, and what cannot go on says so in one line."""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from robustq.cluster import ray_connection, ray_sessions
from robustq.cluster import worker_ends as ends
from robustq.cluster.driver.drive import drive
from robustq.cluster.messages import Place
from robustq.cluster.ray_failures import RayLost, accepts_connection, run_with_restarts
from robustq.cluster.slots import Slots
from robustq.jobs.errors import RunError
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, job
from tests.helpers.postgres_server import free_port

ROOT = Path(__file__).parents[2]
RAY = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


@contextmanager
def nothing(again: bool) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("dies", "done", "starts", "line"),
    [
        (1, [0], 2, None),
        (3, [0, 1, 2], 4, None),
        (4, [0, 1, 2, 3], 4, "it is gone 4 times in this run: all jobs are still queued; see that"),
        (4, [5, 5], 2, "it is gone twice, with nothing done between: all jobs are still queued; see that"),
    ],
)
def test_a_run_goes_on_as_long_as_that_leads_anywhere(dies, done, starts, line):
    began, told, found = [], [], iter(done)

    def work(ray: Any) -> dict[str, int]:
        began.append(ray)
        if len(began) <= dies:
            raise RayLost("it is gone")
        return {"done": 7}

    if line is None:
        assert run_with_restarts(nothing, work, lambda: next(found), told.append) == {"done": 7}
    else:
        with pytest.raises(RunError) as error:
            run_with_restarts(nothing, work, lambda: next(found), told.append)
        assert str(error.value).startswith(line)
    assert len(began) == starts
    assert told == ["it is gone: what ran is queued again, and goes on with a new one"] * (starts - 1)


def test_a_cluster_that_does_not_answer_is_told_at_once():
    port = free_port()
    assert not accepts_connection(f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"^the Ray cluster 127.0.0.1:{port} cannot be reached: nothing answers there$"):
        ray_connection.cluster_ray(f"127.0.0.1:{port}").__enter__()
    assert time.monotonic() - began < 10


def test_a_cluster_that_was_there_is_waited_for(monkeypatch):
    told, tries = [], []

    @contextmanager
    def cluster_ray(address: str, *, insecure: bool) -> Iterator[str]:
        tries.append(address)
        if len(tries) < 4:
            raise RunError("the Ray cluster head:1 cannot be reached: nothing answers there")
        yield "ray"

    monkeypatch.setattr(ray_connection, "cluster_ray", cluster_ray)
    monkeypatch.setattr(ray_connection, "BACK_LOOK_SECONDS", 0.01)
    with ray_connection.reached("head:1", told.append, insecure=False, again=True) as ray:
        assert (ray, len(tries)) == ("ray", 4)
    line = "the Ray cluster head:1 cannot be reached: nothing answers there; waiting for it, 5 minutes at most"
    assert told == [line]
    tries.clear()
    with pytest.raises(RunError, match="cannot be reached"):
        ray_connection.reached("head:1", told.append, insecure=False, again=False).__enter__()
    assert len(tries) == 1


def test_an_interrupt_while_ray_starts_ends_ray_before_its_folder(monkeypatch):
    """Ray asks its servers once more when it ends: with the folder they are killed."""
    order = []

    @contextmanager
    def gone() -> Iterator[str]:
        try:
            yield "/tmp"
        finally:
            order.append("folder")

    def start(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_connection, "session_folder", gone)
    monkeypatch.setattr(ray_connection, "start", start)
    ray = SimpleNamespace(shutdown=lambda: order.append("ray"))
    with pytest.raises(KeyboardInterrupt):
        ray_connection.started(ray, Slots(1, 0, 1)).__enter__()
    assert order == ["ray", "folder"]


class TestFolder:
    @pytest.fixture(autouse=True)
    def place(self, monkeypatch) -> Iterator[Path]:
        place = Path("/tmp") / f"rq-test-{os.getpid()}"
        place.mkdir(exist_ok=True)
        monkeypatch.setattr(ray_sessions, "roots", lambda: [place])
        yield place
        for path in place.glob("*/*"):
            path.unlink() if path.is_file() else path.rmdir()
        for path in place.iterdir():
            path.rmdir()
        place.rmdir()

    def test_goes_at_the_end_and_is_nobody_elses_to_write(self, place):
        with ray_sessions.session_folder() as inner:
            outer = Path(inner).parent
            assert outer.parent == place and outer.stat().st_mode & 0o77 == 0
            (Path(inner) / "logs").mkdir()
            ray_sessions.remove_stale()
            assert Path(inner, "logs").is_dir()
        assert list(place.iterdir()) == []

    def test_of_a_process_that_was_killed_goes_with_the_next(self, place):
        code = (
            "import sys, time; from pathlib import Path; from robustq.cluster import ray_sessions as session\n"
            f"session.roots = lambda: [Path({str(place)!r})]\n"
            "print(session.make_folder()[0], flush=True); time.sleep(60)"
        )
        killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert killed.stdout is not None
        with killed.stdout:
            folder = Path(killed.stdout.readline().strip())
        (folder / "log").write_text("x")
        foreign = place / f"{ray_sessions.PREFIX}other"  # of somebody who marks nothing
        foreign.mkdir()
        ray_sessions.remove_stale()
        assert folder.is_dir()
        # What its Ray would be: a process that has the folder in its command line, and a path of Ray's.
        code = "import time; print(flush=True); time.sleep(60)"
        left = subprocess.Popen([sys.executable, "-c", code, "/ray/", f"{folder}/r/x"], stdout=subprocess.PIPE)
        assert left.stdout is not None
        with left.stdout:
            left.stdout.readline()  # before, its command line may not be there yet
        killed.kill()
        killed.wait()
        ray_sessions.remove_stale()
        left.wait(20)
        assert not psutil.pid_exists(left.pid)  # killed, not by this test
        assert list(place.iterdir()) == [foreign]

    def test_that_somebody_else_made_is_left_alone(self, place, tmp_path, monkeypatch):
        """Nor what a link of such a name leads to."""
        folder = tmp_path / "elsewhere"
        for made in (folder, place / f"{ray_sessions.PREFIX}theirs"):
            made.mkdir()
            (made / ray_sessions.LOCK_FILE).touch()
        (place / f"{ray_sessions.PREFIX}link").symlink_to(folder)
        with monkeypatch.context() as patch:
            patch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
            ray_sessions.remove_stale()
        assert len(list(place.iterdir())) == 2 and folder.is_dir()
        ray_sessions.remove_stale()  # one's own, whose process is gone
        assert [path.name for path in place.iterdir()] == [f"{ray_sessions.PREFIX}link"]
        assert [path.name for path in folder.iterdir()] == [ray_sessions.LOCK_FILE]
        (place / f"{ray_sessions.PREFIX}link").unlink()

    def test_that_cannot_be_made_is_one_line(self, monkeypatch, tmp_path):
        monkeypatch.setattr(ray_sessions, "roots", lambda: [tmp_path / ("a" * 100), Path("/dev/null/in")])
        with pytest.raises(RunError) as error:
            ray_sessions.session_folder().__enter__()
        assert str(error.value) == (
            f"Ray finds no folder for its sockets and logs (the name of {tmp_path}/{'a' * 100} is too long for sockets; "
            "/dev/null/in: Not a directory): name one in which there is room, with a short name, in TMPDIR"
        )

    def test_where_its_name_is_too_long_is_in_tmp(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("a" * 100)))
        with ray_sessions.session_folder() as inner:
            assert inner.startswith("/tmp/robustq-ray-")


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "line"), [("os._exit(1)", ray_sessions.ENDED + "\n"), ("None", ""), ("1 / 0", "")])
def test_a_process_that_ray_ends_is_told_of(ends, line):
    code = f"import os\nfrom robustq.cluster import ray_sessions\nwith ray_sessions.announce_if_killed():\n    {ends}\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith(line) and ("robustq: " in done.stderr) == bool(line)
    assert done.returncode == (0 if ends == "None" else 1)


def test_what_a_worker_printed_before_it_died_is_kept(tmp_path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    submit_probes(store, 1)
    log, folder = tmp_path / "worker.err", tmp_path / "artifacts"
    log.write_text("of an earlier bundle\nSegmentation fault\n")
    place = Place("here", "", 1, "", "", str(log), len("of an earlier bundle\n"))
    with store.begin() as db:
        drivers.register(db, "d", "here", 1, 0.0, "")
        (claimed,) = claim(db, "d", most=1)
        transitions.start(db, claimed, "d", "here", 1, "", str(log))
        ends.keep_log(db, place, claimed, str(folder))
        kept = db.execute(attempt.select()).one().log
    assert Path(kept).parent == folder / "logs" and Path(kept).read_text() == "Segmentation fault\n"
    log.unlink()
    with store.begin() as db:
        ends.keep_log(db, place, claimed, str(folder))  # gone: nothing is said, and what is kept stays
        assert db.execute(attempt.select()).one().log == kept
    store.engine.dispose()


class TestRay:
    pytestmark = RAY

    @pytest.mark.parametrize("name", ["raylet", "gcs_server"])
    def test_dies_at_work_and_the_run_goes_on(self, name, tmp_path):
        store = open_store(str(tmp_path / "r.db"), create=True, write=True)
        sweep_id = submit_probes(store, 6, seconds=0.5)
        before = {child.pid for child in psutil.Process().children()}
        told: list[str] = []

        def kill() -> None:
            while True:
                time.sleep(0.05)
                with store.begin() as db:
                    done = queue_states(db).count("done")
                if done >= 2:
                    break
            mine = [child for child in psutil.Process().children() if child.pid not in before]
            next(child for child in mine if child.name() == name).kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = drive(store, sweep_id=sweep_id, slots=Slots(2, 0, 1), tell=told.append)
        killer.join()
        assert found["done"] == 6
        what = {"raylet": "raylet", "gcs_server": "GCS server"}[name]
        assert told == [f"Ray's {what} has died: what ran is queued again, and goes on with a new one"]
        with store.begin() as db:
            rows = db.execute(attempt.select()).all()
            assert {row.crashes for row in db.execute(job.select())} == {0}  # no fault of theirs
        # Each is done once, and no more than ran at that moment was begun again.
        assert sum(row.outcome == "done" for row in rows) == 6 and len(rows) <= 8
        assert {row.log for row in rows} == {None}
        store.engine.dispose()

    def test_does_not_start(self, tmp_path):
        store = open_store(str(tmp_path / "r.db"), create=True, write=True)
        submit_probes(store, 2, seconds=0.0)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (6_000_000 * 1024, 6_000_000 * 1024))

        command = [sys.executable, "-m", "robustq", "--store", str(tmp_path / "r.db"), "drive"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "ROBUSTQ_RAY": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=90, preexec_fn=limit
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(
            "Ray does not start on this machine: a process may have 5859 MB here (ulimit -v), which Ray may not start "
            "with: take it away; all jobs are still queued: run the same command again, `robustq doctor` tries it alone"
        )
        assert "Traceback" not in done.stderr
        with store.begin() as db:
            assert queue_states(db) == ["queued"] * 2
        store.engine.dispose()


def queue_states(db: Any) -> list[str]:
    return [row.state for row in db.execute(job.select())]
