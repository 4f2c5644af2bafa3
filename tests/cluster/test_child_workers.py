"""Child processes as workers: what comes through their pipes, and that nothing of them outlives its end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from robustq.cluster import child_workers
from robustq.cluster.child_workers import ChildWorkers
from robustq.cluster.driver.drive import drive, one_slot
from robustq.cluster.early_child import early_child
from robustq.cluster.messages import Finished, Place, Started, WorkerSettings
from robustq.cluster.slots import Slots
from robustq.cluster.worker_ends import describe_exit
from robustq.jobs.errors import RunError
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts, job_log
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import attempt, job
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit

ONE = Slots(1, 0, 1)
FULL = 2**16  # bytes that a pipe holds


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings("cpu", 1, str(tmp_path / "artifacts"), str(tmp_path))


@pytest.fixture
def workers() -> Iterator[ChildWorkers]:
    with child_workers.child_workers(ONE) as found:
        yield found


def probe(number: int, seconds: float = 0.0, size: int = 0) -> Claimed:
    return Claimed(number, "k", 1, "probe", {"kind": "probe", "seconds": seconds, "more": "x" * size}, {})


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def collected(workers: ChildWorkers, stream: object, seconds: float = 20.0):
    frames, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        came, ended = workers.collect([(stream, None)], 0.5)
        frames += [frame for _, frame in came]
        if ended:
            return frames, ended[0][1]
    raise AssertionError(f"the bundle does not end: {frames}")


def place_of(workers: ChildWorkers, stream: object, seconds: float = 20.0) -> Place:
    """Where a bundle runs, once it says so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _, frame in workers.collect([(stream, None)], 0.1)[0]:
            assert isinstance(frame, Started)
            return frame.place
    raise AssertionError("the bundle does not begin")


@pytest.mark.slow
def test_a_process_runs_bundle_after_bundle_of_any_size(workers: ChildWorkers, settings: WorkerSettings):
    pids = set()
    for size in (0, 5 * FULL):  # more than the pipes hold, both ways
        bundle = [probe(1, size=size), probe(2, size=size)]
        frames, end = collected(workers, workers.launch(bundle, settings, ONE))
        assert [type(frame) for frame in frames] == [Started, Finished] * 2 and end.reason == ""
        assert [frame.job for frame in frames] == [bundle[0], bundle[0], bundle[1], bundle[1]]
        pids |= {frame.place.pid for frame in frames if isinstance(frame, Started)}
    assert len(pids) == 1 and os.getpid() not in pids


@pytest.mark.slow
def test_on_a_gpu_each_bundle_has_a_process_of_its_own_that_sees_it(settings: WorkerSettings):
    slots, pids = Slots(1, 1, 1, gpus="GPU-5e2,GPU-5e3"), set()
    with child_workers.child_workers(slots) as workers:
        for _ in range(2):
            (started, _), _ = collected(workers, workers.launch([probe(1)], settings, slots))
            assert started.place.gpu_ids == "GPU-5e2"
            pids.add(started.place.pid)
    assert len(pids) == 2


@pytest.mark.slow
def test_a_frozen_process_holds_nobody_up(workers: ChildWorkers, settings: WorkerSettings):
    """Not even in the middle of a frame, and with a bundle on its way that its pipe does not take."""
    stream = workers.launch([probe(1, 0.5, 5 * FULL)], settings, ONE)
    place = place_of(workers, stream)
    os.kill(place.pid, signal.SIGSTOP)
    stream.child.send(probe(2, size=5 * FULL))
    began = time.monotonic()
    assert workers.collect([(stream, None)], 0.2) == ([], [])
    workers.stop(stream, place)
    assert time.monotonic() - began < 5 and not psutil.pid_exists(place.pid)
    _, end = collected(workers, workers.launch([probe(3)], settings, ONE))  # by a new one
    assert end.reason == ""


@pytest.mark.slow
def test_whoever_kills_the_guard_kills_the_worker(workers: ChildWorkers, settings: WorkerSettings):
    stream = workers.launch([probe(1, 60.0)], settings, ONE)
    place = place_of(workers, stream)
    stream.child.process.kill()
    frames_left, end = collected(workers, stream)
    assert (frames_left, end.cannot_load) == ([], False) and "SIGKILL" in end.reason
    until(lambda: not psutil.pid_exists(place.pid))


def place_with(folder: Path, text: str) -> Place:
    (folder / "worker.err").write_text(text)
    return Place("node", "", 1, "", "", str(folder / "worker.err"))


@pytest.mark.parametrize(
    ("ended", "of_memory", "cannot_load", "words"),
    [
        ("exit 3", False, False, "the worker ended with exit code 3, and the last that it printed is: bye"),
        ("signal 11", True, False, "the worker was ended by SIGSEGV, and the last that it printed is: bye"),
        ("signal 9", False, False, "the worker was ended by SIGKILL, and the last that it printed is: bye"),
        ("", False, False, "the worker was ended by SIGKILL, and the last that it printed is: bye"),
        ("signal 9", True, False, "OutOfMemoryError: the system ended the worker for lack of memory"),
        ("exit 1", False, True, "bye"),
    ],
)
def test_how_a_process_ended(ended: str, of_memory: bool, cannot_load: bool, words: str, tmp_path: Path):
    assert describe_exit(ended, place_with(tmp_path, "hello\nbye\n"), of_memory, cannot_load) == words


@pytest.mark.slow
def test_a_worker_that_the_system_ends_for_memory(workers: ChildWorkers, settings: WorkerSettings, monkeypatch):
    """The kernel's count is made up here, and the kill is this test's."""
    kills = iter([7, 8])
    monkeypatch.setattr(child_workers, "memory_kills", lambda: next(kills))
    stream = workers.launch([probe(1, 60.0)], settings, ONE)
    place = place_of(workers, stream)
    if Path("/proc/self/oom_score_adj").exists():  # the driver is not to be the one
        assert Path(f"/proc/{place.pid}/oom_score_adj").read_text() == "1000\n"
    os.kill(place.pid, signal.SIGKILL)
    assert collected(workers, stream)[1].reason == "OutOfMemoryError: the system ended the worker for lack of memory"


def test_workers_that_cannot_load_robustq_are_not_tried_again(tmp_path: Path, monkeypatch):
    (tmp_path / "robustq.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    sweep_id = submit_probes(store, 2, seconds=0.0)
    with pytest.raises(RunError) as error:
        drive(store, sweep_id=sweep_id, slots=ONE)
    assert str(error.value).startswith(
        "the workers cannot load robustq; nothing was run, all jobs are still queued: "
    ) and str(error.value).endswith("'robustq' is not a package)")
    with store.begin() as db:
        assert counts(db)["queued"] == 2
        assert db.execute(attempt.select()).all() == []
    store.engine.dispose()


@pytest.mark.slow
def test_an_early_process_is_used_or_ended(settings: WorkerSettings, monkeypatch):
    with early_child(1) as early:
        assert early.child is not None
        pid = early.child.process.pid
    assert not psutil.pid_exists(pid)
    on_gpu = Slots(1, 1, 1, gpus="GPU-5e2")
    # With the threads and GPUs that the job is to have, with others, and without that GPU.
    for threads, slots, is_used in ((1, ONE, True), (2, ONE, False), (1, on_gpu, False)):
        with early_child(threads) as early, child_workers.child_workers(slots, spare := early.take()) as workers:
            stream = workers.launch([probe(1)], settings, slots)
            assert (stream.child is spare) is is_used and collected(workers, stream)[1].reason == ""
    monkeypatch.setenv("ROBUSTQ_RAY", "1")
    with early_child(1) as early:
        assert early.child is None
        early.load()


# What a model does to its worker, and not to the process that checks it before it is queued.
MODEL = """
import os, signal, subprocess, sys, time
import torch

class Net(torch.nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        if "child_process" in sys.argv[0]:
            self.act()
        return x.flatten(1)[:, :10]

def leave():
    print("so long", file=sys.stderr)
    os._exit(3)

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def close(fds=[0, 1, 2]):
    while fds:
        os.close(fds.pop())

def start():
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    found = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid, os.getpid()]
    with open("pids.part", "w") as file:
        file.write(" ".join(map(str, found)))
    os.rename("pids.part", "pids")
    time.sleep(300)

def leaves(): return Net(leave)
def crashes(): return Net(crash)
def closes(): return Net(close)
def asks(): return Net(lambda: print("ray" in sys.modules, file=open("loaded", "w")))
def starts(): return Net(start)
"""


def submitted(folder: Path, *factories: str) -> Store:
    (folder / "mine.py").write_text(MODEL)
    models = {name: {"file": f"mine.py:{name}"} for name in factories}
    entries = {"name": "s", "models": models, "attacks": [{"name": "fgsm", "eps": 0.1}], "examples": 20}
    study, origin = Study.model_validate(entries), Origin("s", {}, {})
    store, _ = submit(str(folder / "r.db"), study, origin, folder, data_folder=folder)
    with store.begin() as db:
        db.execute(sa.update(job).values(max_crashes=1))
    return store


@pytest.mark.slow
def test_what_a_model_does_to_its_worker_is_its_own_end(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = submitted(tmp_path, "leaves", "crashes", "closes")
    found = drive(store, slots=ONE)
    assert {state: n for state, n in found.items() if n} == {"failed": 2, "done": 1}
    with store.begin() as db:
        logs = {row.id: job_log(db, row.id) for row in db.execute(sa.select(job.c.id).where(job.c.state == "failed"))}
    messages = sorted(log["error_message"] for log in logs.values())
    kept = [log["attempts"][0]["log"] for log in logs.values()]
    assert messages[0].startswith(
        "its worker died 1 time, last: the worker ended with exit code 3, and the last that it printed is: so long"
    )
    assert messages[1].startswith(
        "its worker died 1 time, last: the worker was ended by SIGSEGV, and the last that it printed is: "
        "Fatal Python error: Segmentation fault, File "
    )
    assert all(Path(log).parent == tmp_path / "artifacts" / "logs" and Path(log).stat().st_size for log in kept)
    store.engine.dispose()


def test_one_of_several_gpus_is_enough_for_one_job(tmp_path: Path):
    """Unless it is long enough to be split over all of them, or its study says so."""
    store, four = submitted(tmp_path, "closes"), Slots(4, 1, 2)
    with store.begin() as db:
        assert one_slot(db, 1, four) == Slots(1, 1, 2)
        assert one_slot(db, None, four) == four  # others may come
        spec = db.execute(sa.select(job.c.spec)).scalar_one()
        db.execute(sa.update(job).values(spec=spec | {"shards": 2}))
        assert one_slot(db, 1, four) == four
        db.execute(sa.update(job).values(spec=spec, cost=1e12))
        assert one_slot(db, 1, four) == four
    store.engine.dispose()


@pytest.mark.slow
def test_ray_is_loaded_nowhere(tmp_path: Path):
    """Nor is what no short command needs, by the process that gives it."""
    (tmp_path / "mine.py").write_text(MODEL)
    words = ["attack", "mine.py:asks", "--attack", "fgsm", "--eps", "0.1", "--examples", "20"]
    code = (
        "import sys\nfrom robustq.cli import main\n"
        f"main({words!r}, standalone_mode=False)\n"
        "print({'ray', 'torch._dynamo', 'scipy', 'sklearn'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "set()" and "mine.py:asks" in done.stdout
    assert (tmp_path / "loaded").read_text() == "False\n"


@pytest.mark.parametrize("value", ["yes", "2", "false"])
def test_whether_ray_is_wanted_is_said_by_a_number(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROBUSTQ_RAY", value)
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    submit_probes(store, 1)
    with pytest.raises(RunError, match=f"^ROBUSTQ_RAY: expected 0 or 1, got '{value}'$"):
        drive(store)
    store.engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "cancelled"])
def test_nothing_that_a_model_started_outlives_its_worker(how: str, tmp_path: Path):
    """Also what has left its group and session."""
    submitted(tmp_path, "starts").engine.dispose()
    command = [sys.executable, "-m", "robustq", "--store", "r.db", "drive"]
    driver = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until((tmp_path / "pids").exists, 60)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 3 and all(psutil.pid_exists(pid) for pid in pids)
    if how == "killed":
        os.kill(pids[2], signal.SIGSTOP)  # the worker cannot see to it itself
        driver.kill()
    else:
        subprocess.run([*command[:-1], "cancel", "1"], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    until(lambda: not any(psutil.pid_exists(pid) and not is_zombie(pid) for pid in pids))
    driver.wait(20)


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_the_environment_of_a_worker_holds(monkeypatch: pytest.MonkeyPatch):
    from robustq.cluster.worker_isolation import worker_environment

    monkeypatch.setenv("ROBUSTQ_STORE", "secret")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = worker_environment(3)
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("3", "PASSIVE") and "ROBUSTQ_STORE" not in found
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(3)["OMP_NUM_THREADS"] == "5"
