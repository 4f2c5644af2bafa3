"""The identity of a process, which no clock changes: a pid may be used again, and each container counts its own.

Linux knows when a process began in ticks since the boot. The same as a time of day moves whenever the clock is set,
since the time of the boot is reckoned back from it.
"""

import os
import platform
import signal
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

PROC = Path("/proc")
ENDED = ("Z", "X", "x")  # states of a process that only waits for its parent to hear of its end


def host_identity() -> str | None:
    """Where a pid and a start mean what they mean to this process: the boot, the PID namespace, and the time namespace,
    which shifts the ticks. None where /proc is that of another PID namespace.

    Where the system has none of these, as macOS, its name and hardware address stand for them.
    """
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        pids = os.readlink(PROC / "self/ns/pid")
        mine = os.readlink(PROC / "self") == str(os.getpid())
    except OSError:
        return f"{platform.node()} {uuid.getnode():x}"
    time = PROC / "self/ns/time"  # since Linux 5.6
    return f"{boot} {pids} {os.readlink(time) if os.path.lexists(time) else '-'}" if mine else None


def start_time(pid: int) -> str | None:
    """When a process began, on its system's own scale. None if it has ended, empty if that is not known."""
    if not PROC.exists():
        return start_time_by_psutil(pid)
    try:
        status = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "" if exists(pid) else None
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()  # the name before may hold blanks and parentheses
    return None if fields[0] in ENDED else fields[19]  # the third and the 22nd of all


def exists(pid: int) -> bool:
    """Also where /proc hides the processes of others (its option hidepid)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def start_time_by_psutil(pid: int) -> str | None:
    """As `start_time`, without /proc: macOS notes the time of day once, when a process begins, and keeps it."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.6f}"
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""


def identity(pid: int) -> str:
    """What no other process has, nor the next one of this pid. Empty where it has ended, or it cannot be told."""
    place, start = host_identity(), start_time(pid)
    return f"{place} {start}" if place and start else ""


def is_gone(pid: int, recorded: str | None) -> bool:
    """Whether the process that had this identity has surely ended.

    False where that cannot be known: of another PID namespace or machine, and of another boot, since two machines may
    have one name and one image of a disk. What such a process held is left to its lease.
    """
    place, _, start = (recorded or "").rpartition(" ")
    if not place or place != host_identity():
        return False
    now = start_time(pid)
    return now is None or now not in ("", start)


def end(pid: int, recorded: str) -> None:
    """Kill the process that has this identity, also one that hears nothing any more."""
    if recorded and identity(pid) == recorded:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
