"""The connection to Ray: a Ray started on this machine for this process alone, or a running cluster."""

import ipaddress
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from robustlib.regular_files import irregular
from robustq.cluster.last_words import shorten
from robustq.cluster.machine_locks import one_start_at_a_time
from robustq.cluster.ray_failures import accepts_connection
from robustq.cluster.ray_sessions import announce_if_killed, session_folder, start_failure_cause
from robustq.cluster.slots import Slots, cluster_slots, usable_cpus
from robustq.cluster.this_machine import visible
from robustq.cluster.worker_isolation import isolated, job_config
from robustq.jobs.errors import RunError
from robustq.jobs.text.safe_text import address as shown
from robustq.jobs.text.safe_text import hide, one_line

QUEUED = "all jobs are still queued"  # how things are where no Ray starts
MOST_TOKEN_BYTES = 2**16
FRAME_BYTES = 2**23  # of a worker's answer; the outcomes of 100,000 examples take a tenth of it
BACK_SECONDS, BACK_LOOK_SECONDS = 300.0, 5.0  # that a cluster is waited for that was there, and between two looks
HOST_PORT = re.compile(r"\[?[\w.:-]+\]?:\d+")


def import_ray(*, own_token: bool = True) -> Any:
    """Ray, with what it reads from the environment at import set first. Every first import goes through here.

    own_token: make up a token where none is given, as for a Ray of this process's own.
    """
    if "ray" in sys.modules:
        return sys.modules["ray"]
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Threads that wait do not spin: on cores shared with other work, spinning costs ten times what it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ray's ports listen on every address. A token keeps others out; our own is never on disk.
    if own_token or find_token() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
    if own_token:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    quieten(ray)
    # Ray tells the whole cluster the command line of a driver.
    told = getattr(ray._private.utils, "get_entrypoint_name", None)  # pyright: ignore
    if told is not None:
        ray._private.utils.get_entrypoint_name = lambda: hide(told())  # pyright: ignore
    return ray


def quieten(ray: Any) -> None:
    """Leave out what Ray prints of a raylet that died, with the end of its log: robustq says that in a line. Of a node
    of a cluster that is lost Ray alone tells.
    """
    printer = getattr(ray._private.worker, "print_to_stdstream", None)  # not of Ray's public interface
    if printer is None:
        return

    def print_else(data: dict[str, Any], *given: Any, **named: Any) -> None:
        node = ray._private.worker._global_node
        own = ("The node with node id",) if getattr(node, "head", False) else ()  # the only one of a Ray of our own
        if not any(line.startswith(("Raylet is terminated", *own)) for line in data.get("lines", ())):
            printer(data, *given, **named)

    ray._private.worker.print_to_stdstream = print_else


def find_token() -> str | None:
    """The token for a cluster, where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        if irregular(path) is not None or path.stat().st_size > MOST_TOKEN_BYTES:
            return None
        return path.read_text().strip() or None
    except (OSError, ValueError):  # the latter for what is no text
        return None


def is_loopback(address: str) -> bool:
    """Whether an address (host:port or a URL) surely is this machine."""
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(address: str, *, insecure: bool) -> None:
    """Refuse a cluster that anybody who reaches it could run code on, unless told to go there."""
    if insecure or is_loopback(address) or find_token() is not None:
        return
    raise RunError(
        f"expected a token for the Ray cluster {shown(address)}, found none: set RAY_AUTH_TOKEN or "
        "RAY_AUTH_TOKEN_PATH to the cluster's (docs/clusters.md), or --insecure to go without"
    )


QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


@contextmanager
def quiet_stdout(ray: Any) -> Iterator[Any]:
    """Ray until the block ends, with stdout kept for results: it prints there what befalls its workers."""
    with redirect_stdout(sys.stderr):
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def local_ray(slots: Slots, tell: Callable[[str], None] = lambda text: None, *, left: str = QUEUED) -> Iterator[Any]:
    """Ray on this machine alone for the length of a block: no dashboard, no usage statistics.

    Started once more where it does not start, as when one of its processes was killed. Raises RunError.
    tell: hears where another run is just starting its Ray, which is waited for.  left: how things are without it.
    """
    ray = import_ray()
    with started(ray, slots, tell, left=left), quiet_stdout(ray):
        yield ray


@contextmanager
def started(
    ray: Any, slots: Slots, tell: Callable[[str], None] = lambda text: None, *, left: str = QUEUED
) -> Iterator[None]:
    for last in (False, True):
        with ExitStack() as stack:
            folder = stack.enter_context(session_folder())
            try:
                with one_start_at_a_time(tell), isolated(), visible(slots.gpus), announce_if_killed(), lean(ray):
                    start(ray, slots, folder)
            except Exception as error:  # Ray raises what it likes, also a bare Exception
                ray.shutdown()
                cause = start_failure_cause(folder)
                if last or cause is not None:
                    found = one_line(str(error)) or type(error).__name__
                    raise RunError(
                        f"Ray does not start on this machine: {cause or shorten(found)}; {left}: "
                        "run the same command again, `robustq doctor` tries it alone"
                    ) from error
                continue
            except BaseException:  # an interrupt: its processes end with the folder, which Ray must not meet later
                ray.shutdown()
                raise
            yield
            return


# Its dashboard (with `include_dashboard=False` its process starts all the same, and is waited for), what hands its logs
# to drivers, and what asks a cloud for machines: half of the time that a start takes. Not of Ray's public interface.
NOT_HERE = ("start_api_server", "start_log_monitor", "start_monitor")


@contextmanager
def lean(ray: Any) -> Iterator[None]:
    """What is started within the block has no processes that only a cluster needs."""
    node = getattr(getattr(getattr(ray, "_private", None), "node", None), "Node", None)
    kept = {name: getattr(node, name) for name in NOT_HERE if hasattr(node, name)}
    for name in kept:
        setattr(node, name, lambda self, *given, **named: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(node, name, method)


def start(ray: Any, slots: Slots, folder: str) -> None:
    ray.init(
        address="local",  # never a stray cluster that an old file on this machine points to
        num_cpus=max(usable_cpus(), slots.count * slots.num_cpus),
        num_gpus=round(slots.count * slots.num_gpus),
        include_dashboard=False,
        job_config=job_config(ray),
        _temp_dir=folder,
        # Frames lie in this process: Ray ends one that asks a raylet for them which is dead.
        _system_config={"max_direct_call_object_size": FRAME_BYTES},
        **QUIET,
    )


@contextmanager
def cluster_ray(address: str, *, insecure: bool = False) -> Iterator[Any]:
    """A cluster that is there already, "auto" for the one that this machine belongs to, for the length of a block."""
    check_token(address, insecure=insecure)
    ray = import_ray(own_token=False)
    # Ray would ask for many minutes, then end this process.
    if HOST_PORT.fullmatch(address) and not accepts_connection(address):
        raise RunError(f"the Ray cluster {shown(address)} cannot be reached: nothing answers there")
    try:
        with isolated():
            ray.init(address=address, job_config=job_config(ray), **QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"the Ray cluster {shown(address)} cannot be reached: {hide(first)}") from error
    with quiet_stdout(ray):
        yield ray


@contextmanager
def reached(address: str, tell: Callable[[str], None], *, insecure: bool, again: bool) -> Iterator[Any]:
    """The same. again: it was there before, and is waited for."""
    deadline = time.monotonic() + (BACK_SECONDS if again else 0.0)
    with ExitStack() as stack:
        while True:
            try:
                ray = stack.enter_context(cluster_ray(address, insecure=insecure))
                break
            except RunError as error:
                if time.monotonic() > deadline:
                    raise
                if again:
                    tell(f"{error}; waiting for it, {BACK_SECONDS / 60:g} minutes at most")
                    again = False
                time.sleep(BACK_LOOK_SECONDS)
        yield ray


def slots_of(ray: Any, jobs: int, cpus_per_job: int | None) -> Slots:
    """The slots of a cluster as its nodes are now."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(int(found.get("CPU", 0)), int(found.get("GPU", 0))) for found in alive]
    return cluster_slots(nodes, jobs, cpus_per_job)


def check_artifacts(ray: Any, root: str) -> None:
    """Raise RunError where a node of the cluster does not see the artifact folder, in which weights are handed on."""
    if "://" in root:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marker = Path(root) / f"seen-{secrets.token_hex(8)}"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text("")
    look = ray.remote(num_cpus=0, max_retries=0)(os.path.exists)
    try:
        for node in [node for node in ray.nodes() if node["Alive"]]:
            there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            try:
                seen = ray.get(there.remote(str(marker)), timeout=15)
            except ray.exceptions.RayError:  # a node that has just been lost: whatever runs there is tried again
                continue
            if not seen:
                raise RunError(
                    f"the artifact folder {root} is not seen by node {node['NodeManagerHostname']}: set "
                    "ROBUSTQ_ARTIFACTS to a folder that all nodes share or to a URL such as s3://BUCKET/robustq"
                )
    finally:
        marker.unlink()
