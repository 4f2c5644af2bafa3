"""The session folder of this process's own Ray: its sockets and logs, removed at the end, also after a crash.

A run that is alive holds a lock on a file in its folder, which the system takes away with the process: so no folder of
a living run is ever taken for one of a dead run, whatever became of clocks and process numbers.
"""

import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from robustq.cluster.ray_failures import has_ended
from robustq.jobs.errors import RunError
from robustq.jobs.text.safe_text import say

PREFIX = "robustq-ray-"
LOCK_FILE = "held-by-a-run"
SOCKET = "/r/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
LONGEST = 107  # bytes of a socket's name
FULL_BYTES = 2**24
LOOK_SECONDS = 1.0
STUCK_SECONDS = 45.0  # that this process may go on without the GCS server of its Ray
END_SECONDS = 5.0  # that what is left of a Ray may take to end


def roots() -> list[Path]:
    """Where such folders may lie: the user's place for them, and /tmp where its name is too long for sockets."""
    named = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return list(dict.fromkeys([Path(named).absolute(), Path("/tmp")]))


@contextmanager
def session_folder() -> Iterator[str]:
    """A folder for Ray's own files for the length of a block; what still runs there at its end is ended with it."""
    remove_stale()
    folder, mark = make_folder()
    over = threading.Event()
    threading.Thread(target=end_if_stuck, args=(folder, over), daemon=True).start()
    inner = folder / "r"  # which Ray lets everybody write
    inner.mkdir()
    try:
        yield str(inner)
    finally:
        over.set()
        remove(folder)
        os.close(mark)


def make_folder(*, sockets: bool = True) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds it. sockets: Ray's are to lie there."""
    found = []
    for root in roots():
        if sockets and len(os.fsencode(f"{root}/{PREFIX}12345678{SOCKET}")) > LONGEST:
            found.append(f"the name of {root} is too long for sockets")
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            mark = os.open(folder / ".mark", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(mark, fcntl.LOCK_EX)
            os.rename(folder / ".mark", folder / LOCK_FILE)  # there once it is held
            return folder, mark
        except OSError as error:
            found.append(f"{root}: {error.strerror}")
    raise RunError(
        f"{'Ray finds no folder for its sockets and logs' if sockets else 'there is no folder for temporary files'} "
        f"({'; '.join(found)}): name one in which there is room{', with a short name,' if sockets else ''} in TMPDIR"
    )


ANNOUNCER = "import sys; sys.stdin.read(1) or print(sys.argv[1], file=sys.stderr)"
ENDED = "robustq: Ray ended this process while it started: all jobs are still queued, run the same command again"


@contextmanager
def announce_if_killed() -> Iterator[None]:
    """A line for the person where Ray ends this process: it does where its raylet dies just when it is reached.

    Somebody else has to say it, since nothing of ours runs then.
    """
    other = None
    with suppress(OSError):
        command = [sys.executable, "-S", "-E", "-c", ANNOUNCER, ENDED]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        if other is not None:
            other.communicate(b".")


def end_if_stuck(folder: Path, over: threading.Event) -> None:
    """End this process in words where Ray would without: it does that to one that has asked a GCS server which is
    dead for a minute, as while it starts. The jobs that it held go back to the queue with the next command.
    """
    gcs, alive_at = None, time.monotonic()
    while not over.wait(LOOK_SECONDS):
        if gcs is None:
            gcs = next((one for one in processes_of(folder) if one.info["name"] == "gcs_server"), None)
        if gcs is None or not has_ended(gcs):
            alive_at = time.monotonic()
        if time.monotonic() - alive_at > STUCK_SECONDS:
            say("robustq: Ray's GCS server has died and Ray does not end: run the same command again", err=True)
            remove(folder)
            os._exit(2)


def remove_stale() -> None:
    """Remove the folders that runs left behind whose process was killed, with what of their Ray still runs."""
    for root in roots():
        for folder in root.glob(f"{PREFIX}*"):
            with suppress(OSError):  # gone by now
                found = folder.lstat()  # anybody may make a link or a folder of such a name in /tmp
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                    continue
                mark = os.open(folder / LOCK_FILE, os.O_RDWR)
                try:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)
                finally:
                    os.close(mark)


def remove(folder: Path) -> None:
    """End what runs in a folder, and remove it: the mark last, by which it is found again if that comes to nothing."""
    end = time.monotonic() + END_SECONDS
    while (left := processes_of(folder)) and time.monotonic() < end:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    for path in folder.iterdir():
        if path.name != LOCK_FILE:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Ray's processes that were started with that folder: it is in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline", "name", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
            continue
        if any("/ray/" in word for word in words[:4]) and any(
            f"{folder}/" in word or word.endswith(str(folder)) for word in words
        ):
            found.append(process)
    return found


def start_failure_cause(folder: str) -> str | None:
    """Why a Ray did not start there, where that is sure to be so again: with what to do about it."""
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if memory != resource.RLIM_INFINITY:
        return (
            f"a process may have {memory / 2**20:.0f} MB here (ulimit -v), which Ray may not start with: take it away"
        )
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if free < FULL_BYTES:
        return f"the disk of {folder} is full: make room, or name another folder in TMPDIR"
    return None
