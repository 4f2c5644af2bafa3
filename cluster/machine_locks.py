"""Locks between the robustq runs of a user on one machine: one Ray starts at a time, and who uses a GPU is known.

The system takes a lock away with the process that holds it, so none is ever left by a run that was killed.
"""

import os
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from robustq.jobs.text.safe_text import one_line

SOON_SECONDS = 1.0  # that a start of Ray may be waited for without a word
START_SECONDS = 120.0  # after which a Ray is started beside another one that is still not up
TAKE_SECONDS = 10.0  # after which one that was stopped while it looked for GPUs holds nobody up
CPUS = "the CPUs of this machine"  # in the place of a GPU's number


def runtime_folder() -> Path | None:
    """The user's folder for what lives as long as processes: XDG_RUNTIME_DIR, else one in the temporary folder. None
    where there is none that is the user's alone.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f"robustq-{os.getuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    return None


@contextmanager
def one_start_at_a_time(tell: Callable[[str], None]) -> Iterator[None]:
    """The block runs while nobody else of this user is in one: two Rays that start at once take each other's ports."""
    folder = runtime_folder()
    if folder is None:
        yield
        return
    lock = FileLock(folder / "ray-start.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=SOON_SECONDS))
        except Timeout:
            tell("another robustq run is starting Ray on this machine: waiting for it")
            with suppress(Timeout):
                stack.enter_context(lock.acquire(timeout=START_SECONDS))
        yield


@contextmanager
def one_looks_at_a_time(folder: Path | None, seconds: float | None = None) -> Iterator[bool]:
    """The block runs while no other run of this user looks for what is free, or takes it; whether that is so.

    seconds: that another one is waited for, TAKE_SECONDS where it is None; then the block runs beside it.
    """
    alone = True
    with ExitStack() as stack:
        if folder is not None:
            lock = FileLock(folder / "take.lock")
            try:
                stack.enter_context(lock.acquire(timeout=TAKE_SECONDS if seconds is None else seconds))
            except (Timeout, OSError):
                alone = False
        yield alone


class Neighbours:
    """Other robustq runs of the user that compute on the same GPUs or on the CPUs of this machine, told of once.

    what: GPUs by their numbers or names, or CPUS; once the block is entered, those that were taken.
    most: at most so many are taken, of those that no other run has taken where there are some; None for all of them.
    """

    def __init__(self, what: Sequence[str], tell: Callable[[str], None], *, most: int | None = None):
        self.what, self.most = list(what), most
        self.tell, self.told = tell, set[str]()
        self.folder = runtime_folder()
        self.held: list[FileLock] = []

    def __enter__(self) -> "Neighbours":
        """Look and take under one lock: else two runs that start at once see the same GPU free."""
        with one_looks_at_a_time(self.folder):
            if self.most is not None:
                self.what = (unused(self.folder, self.what) or self.what)[: self.most]
            self.tell_of_others()
            if self.folder is not None:
                for one in self.what:
                    with suppress(OSError, Timeout):
                        lock = FileLock(self.folder / f"{name_of(one)}.{os.getpid()}-{threading.get_ident()}.run")
                        self.held.append(lock)
                        lock.acquire(timeout=0)
        return self

    def look(self) -> None:
        """Tell of those that have come. While one of them takes its place nobody looks: a file that is made and not yet
        locked is taken for one that a killed run left.
        """
        with one_looks_at_a_time(self.folder, 0.0) as alone:
            if alone:
                self.tell_of_others()

    def tell_of_others(self) -> None:
        for one in self.what:
            for pid in users_of(self.folder, one, [lock.lock_file for lock in self.held]):
                if f"{one} {pid}" not in self.told:
                    self.told.add(f"{one} {pid}")
                    self.tell(f"another robustq run (process {pid}) is at work on {place(one)} too: each takes longer")

    def __exit__(self, *_: object) -> None:
        for lock in self.held:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
        self.held = []


def free_of(gpus: Sequence[str]) -> list[str]:
    """Those GPUs on which no other robustq run of the user is."""
    folder = runtime_folder()
    with one_looks_at_a_time(folder):
        return unused(folder, gpus)


def unused(folder: Path | None, gpus: Sequence[str]) -> list[str]:
    return [gpu for gpu in gpus if not users_of(folder, gpu)]


def users_of(folder: Path | None, what: str, own: Sequence[str] = ()) -> list[int]:
    """Processes that run robustq there. To be asked in a block of `one_looks_at_a_time`."""
    found = []
    for path in sorted(folder.glob(f"{name_of(what)}.*.run")) if folder is not None else []:
        if str(path) in own:
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(int(path.name.split(".")[-2].partition("-")[0]))
        except OSError:
            continue
        else:  # left by one that was killed
            lock.release()
            path.unlink(missing_ok=True)
    return found


def name_of(what: str) -> str:
    return "cpus" if what == CPUS else "gpu-" + "".join(c if c.isalnum() or c == "-" else "_" for c in what)


def place(what: str) -> str:
    return one_line(what if what == CPUS else f"GPU {what}")
