"""A worker as a child process of its driver: what `python -m robustq.cluster.child_process` does.

It begins as a guard, which forks the worker while nothing but this module is loaded, and from then on only waits: for
the worker's end, which it tells the driver, and for the driver's, or its wish. Then it kills the worker and whatever
that has started. So nothing is left behind by a driver that is killed, whatever the worker is busy or stuck with.

Its arguments: the pid of the driver, the number of the pipe for frames, and the file for what is printed to stdout. By
stdin come bundles, or None where torch is to be loaded before one comes; by stdout goes how the worker ended; stderr is
its log.
"""

import os
import select
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

LENGTH = struct.Struct("!Q")
READY, DONE = b"", b"."  # messages beside frames: the worker can take bundles; a bundle is done
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
LOOK_MILLISECONDS = 1000  # between two looks whether the driver lives, where its pipe does not say so
KILL_FIRST = "1000"  # of the kernel's scale for who is killed when memory runs out: the driver is to survive


def main() -> NoReturn:
    driver, frames, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    guard = os.getpid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        sys.argv = sys.argv[:1]
        work(frames, out)
    os.close(frames)
    with suppress(OSError):  # it is done by whoever comes first
        os.setpgid(pid, pid)
    told = watch(pid, driver)
    with suppress(OSError):  # the driver may be gone
        os.write(1, told.encode())
    os._exit(0)


def prctl(option: int, value: int) -> None:
    """Linux alone has it; elsewhere the guard does what it can."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def watch(worker: int, driver: int) -> str:
    """Wait for the worker's end and kill what it leaves; returns how it ended: `exit` or `signal` and a number."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    asked: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    poll = select.poll()
    poll.register(read, select.POLLIN)
    poll.register(0, 0)  # its other end is closed: the driver is gone, or wants no more
    status = None
    while status is None:
        pid, found = os.waitpid(-1, os.WNOHANG)
        if pid == worker:
            status = found
        elif pid == 0:
            events = dict(poll.poll(LOOK_MILLISECONDS))
            if read in events:
                os.read(read, 4096)
            if asked or 0 in events or os.getppid() != driver:
                kill_group(worker)
                status = os.waitpid(worker, 0)[1]
    kill_group(worker)
    kill_left()
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit {code}"


def kill_group(leader: int) -> None:
    with suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def kill_left() -> None:
    """Kill what has left the worker's group: it is this process's child now."""
    for _ in range(100):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, ValueError, IndexError):
                if int(path.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        select.select([], [], [], 0.01)


def work(frames: int, out: str) -> NoReturn:
    """Run the bundles that come, one after the other, until no more can come."""
    control = os.dup(0)
    redirect(os.open(os.devnull, os.O_RDONLY), 0)
    redirect(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(KILL_FIRST)
    import faulthandler
    import gc
    import pickle

    gc.disable()  # imports make objects that stay: to look for garbage among them takes a fifth of their time

    faulthandler.enable(all_threads=False)
    from robustq.cluster.worker import run_bundle
    from robustq.cluster.worker_isolation import enter_folder, forget_secrets

    gc.enable()
    send(frames, READY)
    while (message := receive(control)) is not None:
        if (bundle := pickle.loads(message)) is None:
            load_early()
            continue
        claimed, settings, log = bundle
        forget_secrets()
        enter_folder(settings.folder)
        for frame in run_bundle(claimed, settings, log=log):
            send(frames, pickle.dumps(frame))
        send(frames, DONE)
    os._exit(0)


def redirect(fd: int, number: int) -> None:
    os.dup2(fd, number)
    os.close(fd)


def load_early() -> None:
    """Load what evaluations need while the driver is still busy. What fails to be loaded is the job's to tell."""
    import gc

    gc.disable()
    with suppress(Exception):
        from robustq.jobs.running import run  # noqa: F401
    gc.enable()


def send(fd: int, message: bytes) -> None:
    """Write a message whole."""
    left = memoryview(LENGTH.pack(len(message)) + message)
    while left:
        left = left[os.write(fd, left) :]


def receive(fd: int) -> bytes | None:
    """The next message; None where the other end is closed."""
    if (head := receive_exactly(fd, LENGTH.size)) is None:
        return None
    return receive_exactly(fd, LENGTH.unpack(head)[0])


def receive_exactly(fd: int, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        if not (part := os.read(fd, size - len(found))):
            return None
        found += part
    return bytes(found)


if __name__ == "__main__":
    main()
