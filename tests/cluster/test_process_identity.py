"""Whether two looks at a process find the same one: whatever the clock shows, and in whatever container."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from robustq.cluster import process_identity
from robustq.cluster.process_identity import end, identity, is_gone

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    begun = []

    def begin(code: str = "input()") -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def freeze(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_a_process_is_itself_and_no_other(start: Start):
    first, second = start(), start()
    told = identity(first.pid)
    assert told and told == identity(first.pid) != identity(os.getpid())
    assert not is_gone(first.pid, told)
    assert is_gone(second.pid, told) or told == identity(second.pid)  # begun in the same hundredth of a second


@LINUX
def test_it_is_what_the_kernel_says():
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ticks = Path("/proc/self/stat").read_text().split(")")[-1].split()[19]
    told = identity(os.getpid()).split()
    assert (told[0], told[-1]) == (boot, ticks)
    assert str(os.stat("/proc/self/ns/pid").st_ino) in told[1]


def test_what_has_ended_is_gone(start: Start):
    process = start()
    told = identity(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(process.pid, told) and identity(process.pid) == ""  # it still waits for its parent to hear of it
    process.wait()
    assert is_gone(process.pid, told) and identity(process.pid) == ""


def test_a_frozen_process_is_ended(start: Start):
    process = start()
    told = identity(process.pid)
    freeze(process)
    assert not is_gone(process.pid, told)
    end(process.pid, told)
    assert process.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("other", ["", "another", "a pid used again"])
def test_a_pid_that_is_somebody_elses_now_is_not_killed(other: str, start: Start):
    process = start()
    place, _, ticks = identity(process.pid).rpartition(" ")
    told = {"": "", "another": f"x{place} {ticks}", "a pid used again": f"{place} {float(ticks) - 1:g}"}[other]
    end(process.pid, told)
    process.communicate(b"\n", timeout=10)
    assert process.returncode == 0
    assert is_gone(process.pid, told) == (other == "a pid used again")


@LINUX
@pytest.mark.parametrize("name", [") Z 1 (", "a b", "\n1 2 3", "\xff)"])
def test_a_process_may_call_itself_anything(name: str, start: Start):
    code = f"open('/proc/self/comm', 'wb').write({name.encode('latin1')!r}); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    told = identity(process.pid)
    shown = psutil.Process(process.pid).create_time() - psutil.boot_time()
    assert float(told.split()[-1]) / os.sysconf("SC_CLK_TCK") == pytest.approx(shown, abs=1e-3)
    assert not is_gone(process.pid, told)
    process.communicate(b"\n")


class FakeProc:
    """Linux's /proc as far as it is read. pid: of the process that looks, as this /proc has it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, pid: int = os.getpid()):
        self.folder = folder
        for place in (f"{pid}/ns", "sys/kernel/random"):
            (folder / place).mkdir(parents=True)
        (folder / "self").symlink_to(str(pid))
        self.boot("b1")
        self.namespace("pid", 1)
        self.namespace("time", 9)
        self.process(pid, 500)
        monkeypatch.setattr(process_identity, "PROC", folder)

    def boot(self, name: str) -> None:
        (self.folder / "sys/kernel/random/boot_id").write_text(f"{name}\n")

    def namespace(self, kind: str, inode: int) -> None:
        link = self.folder / "self/ns" / kind
        link.unlink(missing_ok=True)
        link.symlink_to(f"{kind}:[{inode}]")

    def process(self, pid: int, ticks: int, state: str = "S") -> None:
        (self.folder / str(pid)).mkdir(exist_ok=True)
        (self.folder / str(pid) / "stat").write_text(f"{pid} (x) {state} {'0 ' * 18}{ticks} 0 0\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProc:
    return FakeProc(tmp_path / "proc", monkeypatch)


ELSEWHERE: dict[str, Callable[[FakeProc], None]] = {
    "another boot, or another machine": lambda fake: fake.boot("b2"),
    "another container": lambda fake: fake.namespace("pid", 2),
    "another time namespace": lambda fake: fake.namespace("time", 8),
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_of_another_place_nothing_is_known(change: Callable[[FakeProc], None], fake: FakeProc):
    """Also where there is no such pid here, or it is another's: what it held is left to its lease."""
    told = identity(os.getpid())
    assert told == "b1 pid:[1] time:[9] 500"
    change(fake)
    for pid in (os.getpid(), os.getppid(), 2**22 + 1):  # one that runs, one that is not shown, one that no Linux has
        assert not is_gone(pid, told)
    assert identity(os.getpid()) != told


ASK = """
import os, sys
from robustq.cluster.process_identity import end, identity, is_gone
pid, told = int(sys.argv[1]), sys.argv[2]
end(pid, told)
print(identity(os.getpid()) or "unknown")
print(is_gone(pid, told), is_gone(2**22 + 1, told))
"""


@LINUX
@pytest.mark.parametrize("proc", ["its own", "that outside"])
def test_in_another_namespace(proc: str, start: Start):
    """As in a container: there the pid is another process's, or nobody's."""
    process = start()
    told = identity(process.pid)
    apart = ["unshare", "-rpf", *(["--mount-proc"] if proc == "its own" else [])]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this system grants no namespaces")
    command = [*apart, sys.executable, "-c", ASK, str(process.pid), told]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert (said[0] == "unknown") == (proc == "that outside")
    assert said[0].rpartition(" ")[0] != told.rpartition(" ")[0]
    assert said[1] == "False False"
    assert process.poll() is None


def test_a_kernel_without_time_namespaces(fake: FakeProc):
    (fake.folder / "self/ns/time").unlink()
    assert identity(os.getpid()) == "b1 pid:[1] - 500"


def test_what_is_hidden_is_not_gone(fake: FakeProc, start: Start):
    """As by the option hidepid of /proc: a process that runs, and is not in the table."""
    process = start()
    assert not is_gone(process.pid, "b1 pid:[1] time:[9] 700")
    (fake.folder / str(process.pid)).mkdir()
    (fake.folder / str(process.pid) / "stat").mkdir()  # it cannot be read
    assert not is_gone(process.pid, "b1 pid:[1] time:[9] 700")
    assert identity(process.pid) == ""


def test_a_table_of_other_pids_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start):
    """As in a PID namespace whose /proc is still the one outside: there this process has another pid."""
    process = start()
    fake = FakeProc(tmp_path / "proc", monkeypatch, pid=os.getpid() + 1)
    fake.process(process.pid, 700)
    assert identity(process.pid) == ""
    end(process.pid, "b1 pid:[1] time:[9] 700")
    assert process.poll() is None and not is_gone(process.pid, "b1 pid:[1] time:[9] 600")


@pytest.mark.parametrize("state", ["Z", "X", "x"])
def test_one_that_only_waits_to_be_heard_of_is_gone(state: str, fake: FakeProc):
    fake.process(os.getpid(), 500, state)
    assert is_gone(os.getpid(), "b1 pid:[1] time:[9] 500") and identity(os.getpid()) == ""


@pytest.mark.parametrize("told", [None, "", "500", "b1", "\0"])
def test_what_an_older_version_left_out_is_not_known(told: str | None, fake: FakeProc):
    assert not is_gone(os.getpid(), told) and not is_gone(2**22 + 1, told)


def test_without_such_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start):
    """As on macOS, where the start is a time of day that the kernel notes once."""
    monkeypatch.setattr(process_identity, "PROC", tmp_path / "nowhere")
    process = start()
    told = identity(process.pid)
    assert told.endswith(f" {psutil.Process(process.pid).create_time():.6f}") and not is_gone(process.pid, told)
    assert not is_gone(process.pid, f"another {told}") and is_gone(process.pid, f"{told}1")
    freeze(process)
    end(process.pid, f"{told}1")
    assert process.poll() is None
    end(process.pid, told)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(process.pid, told)
    process.wait()
    assert is_gone(process.pid, told)
