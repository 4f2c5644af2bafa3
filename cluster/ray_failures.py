"""Failures of Ray under a run: noticed before Ray ends this process, and mended by a new start or connection."""

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psutil

from robustq.jobs.errors import RunError

PROBE_SECONDS = 2.0  # between two looks at a head elsewhere, and that it may take to answer
GONE_SECONDS = 40.0  # without an answer, after which it is gone: Ray waits for a minute and then ends this process
RESTARTS = 3  # of Ray in a run
MEND = "see that there is memory for it, then run the same command again"


class RayLost(RunError):
    """The Ray that a run was on has died: what ran there goes back to the queue."""


class RayHealth:
    """Whether the Ray that this process is on lives: the raylet of this machine, and the GCS, its cluster's head."""

    def __init__(self, ray: Any):
        node = ray._private.worker._global_node  # not of Ray's public interface
        started = {name: processes[0].process.pid for name, processes in node.all_processes.items() if processes}
        self.processes = {
            name: psutil.Process(pid) for name, pid in started.items() if name in ("raylet", "gcs_server")
        }
        if "raylet" not in started and (found := raylet_at(node.raylet_socket_name)) is not None:
            self.processes["raylet"] = found
        # A head of one's own is seen by its process.
        self.address = None if "gcs_server" in started else node.gcs_address
        self.probed_at = self.answered_at = time.monotonic()

    def lost(self) -> str | None:
        """What has died, None where all is well. Quick enough to ask before each call of Ray."""
        for name, process in self.processes.items():
            if has_ended(process):
                return {"raylet": "raylet", "gcs_server": "GCS server"}[name]
        if self.address is None:
            return None
        if time.monotonic() - self.probed_at > PROBE_SECONDS:
            self.probe()
        return f"head at {self.address}" if self.probed_at - self.answered_at > GONE_SECONDS else None

    def probe(self) -> bool:
        """Whether the head answers right now: Ray asks one that does not until it ends this process."""
        found = self.address is None or accepts_connection(self.address)
        self.probed_at = time.monotonic()
        if found:
            self.answered_at = self.probed_at
        return found


def raylet_at(socket_name: str) -> psutil.Process | None:
    """The process of a raylet that something else on this machine started."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and any(socket_name in word for word in process.info["cmdline"] or ()):
            return process
    return None


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def accepts_connection(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def run_with_restarts(
    reach: Callable[[bool], AbstractContextManager[Any]],
    work: Callable[[Any], dict[str, int]],
    done: Callable[[], int],
    tell: Callable[[str], None],
) -> dict[str, int]:
    """Work on a Ray, and where it dies go on with a new one: RESTARTS times, if something was done between.

    reach: starts or reaches it, told whether it was there before.  done: how many jobs have ended.  tell: hears of each
    loss.
    """
    before: int | None = None
    for restarts in range(RESTARTS + 1):
        try:
            with reach(restarts > 0) as ray:
                return work(ray)
        except RayLost as error:
            ended = done()
            if restarts == RESTARTS or ended == before:
                times = (
                    f"{restarts + 1} times in this run" if restarts == RESTARTS else "twice, with nothing done between"
                )
                raise RunError(f"{error} {times}: all jobs are still queued; {MEND}") from error
            before = ended
            tell(f"{error}: what ran is queued again, and goes on with a new one")
    raise AssertionError("the last one is raised")
