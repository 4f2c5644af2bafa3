"""A package served by Ray: replicas behind the HTTP proxy of Ray Serve, from a start of Ray here to its orderly end."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from typing import Any

from starlette.middleware import Middleware

from robustlib.number_text import counted
from robustlib.packages.contents import PackageError
from robustlib.packages.in_memory import in_memory
from robustlib.packages.manifest import Package
from robustq.cluster.ray_connection import import_ray, local_ray
from robustq.cluster.ray_failures import RayHealth
from robustq.cluster.ray_workers import worker_env
from robustq.cluster.serving.all_replicas import AllReplicas, Board, keep_told
from robustq.cluster.slots import Slots
from robustq.cluster.this_machine import gpu_count
from robustq.cluster.worker_isolation import forget_secrets
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.serving.server import Asked, Ready, application_of

OLDEST = (2, 60)  # release of Ray whose replicas listen to nobody without its token
NAME = "robustq"  # of the application in Ray Serve
LOOK_SECONDS = 1.0  # between two looks at Ray
LEAVE_SECONDS = 20.0  # that a replica may take for the requests that it has, when it is to end
LAST_SECONDS = 0.5  # for the proxy, when the replicas have given their last answers
PROXY_SECONDS = 60.0  # in which the proxy has to be up, where the environment does not say
PROXY_LIMIT = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
STARTS = 2  # that a replica gets before it is given up, with its command
ANSWER_SECONDS = 30.0  # in which the first replica has to answer, once all are up
ASK_SECONDS = 5.0  # that one asking of it may take, in which nothing else is heard
RETRY_SECONDS = 1.0  # after which a client that was refused may ask again
BATCHES = 2  # that a replica holds requests for: one that it computes, and the next


@dataclass(frozen=True)
class Replicas:
    """How many there are, and what each one has. gpus: a share of one, or whole ones."""

    count: int
    cpus: int = 1
    gpus: float = 0.0

    @property
    def gpus_needed(self) -> int:
        """GPUs that hold all of them: a share lies on one GPU."""
        if self.gpus == 0:
            return 0
        if self.gpus >= 1:
            return self.count * round(self.gpus)
        return math.ceil(self.count / math.floor(1 / self.gpus + 1e-9))

    @property
    def slots(self) -> Slots:
        """What a Ray of this process's own has to have."""
        return Slots(self.count, self.gpus_needed / self.count, self.cpus)


def import_serve() -> Any:
    """Ray Serve, with what it reads from the environment set first. Raises SpecError where it is not installed, or its
    replicas' ports are open to all.
    """
    # What replicas log goes to Ray's files, not into what this command says.
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Of its own accord Ray Serve kills a proxy that is not up in 5 seconds, which a busy machine does not manage.
    os.environ.setdefault(PROXY_LIMIT, f"{PROXY_SECONDS:g}")
    # Who asks the proxy is who is connected, whatever a header says.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    try:
        ray = import_ray()
        from ray import serve
    except ImportError as error:
        raise SpecError(f"--ray needs Ray Serve ({error.name}): pip install 'robustq[serve]'") from error
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise SpecError(f"--ray needs Ray {oldest} or newer, got {ray.__version__}: pip install -U 'robustq[serve]'")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve


def check_gpus(replicas: Replicas, *, smoothed: bool) -> None:
    """Raises SpecError for more than this machine has, a share that no GPU can be cut into, or GPUs that nothing would
    compute on. smoothed: whether the replicas vote, by the network.
    """
    if replicas.gpus and not smoothed:
        raise SpecError(
            "--gpus has no effect without --sigma: a program is computed on CPUs by ONNX Runtime; leave it out"
        )
    if replicas.gpus > 1 and replicas.gpus != round(replicas.gpus):
        raise SpecError(f"--gpus: expected a share of one GPU or whole ones, got {replicas.gpus:g}")
    if (needed := replicas.gpus_needed) > (found := gpu_count()):
        raise SpecError(
            f"--gpus {replicas.gpus:g} for {counted(replicas.count, 'replica')} needs {counted(needed, 'GPU')}, "
            f"this machine has {found}: ask for less, or leave --gpus out"
        )


def serve_on_ray(
    asked: Asked, ready: Ready, announce: Callable[[str], None], *, replicas: Replicas, tell: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or an interrupt, then answer what was accepted, and end.

    ready: the same in this process, which gives its port away.  announce: called when the replicas answer, with how
    they compute, in words.  tell: hears what is done before. Raises RunError where Ray does not start, or dies.
    """
    if asked.watching is not None and asked.watching.log is not None:  # replicas work in another folder
        asked = replace(asked, watching=replace(asked.watching, log=asked.watching.log.absolute()))
    try:
        package, port = in_memory(ready.package), ready.port
    except PackageError as error:
        raise SpecError(f"{error}: it has changed since it was verified") from error
    ready.service.close()
    serve = import_serve()
    tell(f"starting Ray with {counted(replicas.count, 'replica')}")
    with local_ray(replicas.slots, tell, left="nothing is served") as ray:
        health = RayHealth(ray)
        try:
            ready.listening.close()
            deploy(ray, serve, package, asked, replicas, port)
            with asked_to_end() as ended:
                if (engine := engine_of(asked.host, port, ended)) is not None:
                    announce(engine)
                while not ended.wait(LOOK_SECONDS):
                    if (what := health.lost()) is not None:
                        raise RunError(f"Ray's {what} has died, and the replicas with it: give the same command again")
        finally:
            if health.lost() is None:
                leave(serve)


def engine_of(host: str, port: int, ended: threading.Event) -> str | None:
    """How a replica says that it computes, which this process does not know. None where the end is asked for before it
    answers. Raises RunError where none answers.
    """
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    until, last = time.monotonic() + ANSWER_SECONDS, "no answer"
    while time.monotonic() < until:
        connection = HTTPConnection(here, port, timeout=ASK_SECONDS)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            if answer.status == 200:
                return str(json.loads(answer.read())["engine"])
            last = f"status {answer.status}"
        except (OSError, HTTPException) as error:
            last = str(error)
        finally:
            connection.close()
        if ended.wait(LAST_SECONDS):
            return None
    raise RunError(f"the replicas do not answer on port {port}: {last}")


@contextmanager
def asked_to_end() -> Iterator[threading.Event]:
    """Set by SIGTERM and by an interrupt. Ray has handlers of its own, so that these come after its start."""
    ended = threading.Event()
    kept = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def deploy(ray: Any, serve: Any, package: Package, asked: Asked, replicas: Replicas, port: int) -> None:
    """Start the proxy and the replicas, and wait until all of them answer."""
    # Once in Ray's memory, from where each replica takes it, also one that is started later.
    lies_at = ray.put(package)
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()

    def application() -> Any:
        return replica_application(lies_at, board, asked, replicas.gpus)

    options = {
        "name": "package",
        "num_replicas": replicas.count,
        "ray_actor_options": {
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            "runtime_env": worker_env(replicas.slots),
        },
        "max_ongoing_requests": BATCHES * asked.settings.batch_size,
        "max_queued_requests": asked.settings.queue_images,
        "backpressure_config": {"status_code": 503, "retry_after_s": RETRY_SECONDS},
        "graceful_shutdown_timeout_s": LEAVE_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 2.0,
        "max_constructor_retry_count": STARTS,
    }
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": asked.host, "port": port})
        serve.run(serve.deployment(**options)(serve.ingress(application)()).bind(), name=NAME, route_prefix="/")
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        found = serve.status().applications.get(NAME)
        told = [one.message for one in found.deployments.values()] if found else []
        raise not_started("\n".join(told) or str(error)) from error


def not_started(told: str) -> Exception:
    """Why replicas do not start: a line where it is for the user to mend, else all that Ray Serve tells.

    told: with a replica's traceback at its end.
    """
    last = next((line for line in reversed(told.splitlines()) if line.strip()), "")
    kind, _, line = last.partition(": ")
    if kind.startswith("robustq.jobs.errors."):
        return RunError(f"the replicas do not start: {line}")
    if "ProxyActor" in told and "killed by `ray.kill`" in told:
        late = f"Ray Serve's proxy was not up in {os.environ.get(PROXY_LIMIT, PROXY_SECONDS)} seconds"
        return RunError(f"the replicas do not start: {late}: give the same command again when the machine is less busy")
    return RuntimeError(f"the replicas do not start: {told}")


def replica_application(lies_at: Any, board: Any, asked: Asked, gpus: float) -> Any:
    """What answers in a replica's process: what one process alone would have, with the metrics of all replicas."""
    forget_secrets()
    ray = import_ray(own_token=False)
    from ray import serve

    if 0 < gpus < 1:
        import torch

        # Shares are Ray's bookkeeping: this keeps a replica from taking its neighbours' memory.
        torch.cuda.set_per_process_memory_fraction(gpus)
    name = serve.get_replica_context().replica_id.unique_id
    inside = [Middleware(AllReplicas, board=board, replica=name)]
    found = application_of(ray.get(lies_at), log_of_its_own(asked, name), inside)
    keep_told(ray, board, name, found.state.service.metrics)
    return found


def log_of_its_own(asked: Asked, replica: str) -> Asked:
    """The same, with a log of signals that no other replica writes: two processes cannot share one that has a limit."""
    if asked.watching is None or asked.watching.log is None:
        return asked
    place = asked.watching.log
    log = place.with_name(f"{place.stem}.{replica}{place.suffix}")
    return replace(asked, watching=replace(asked.watching, log=log))


def leave(serve: Any) -> None:
    """End the replicas, while the proxy still brings their last answers back. The rest ends with this process's Ray."""
    if NAME in serve.status().applications:
        serve.delete(NAME)
        time.sleep(LAST_SECONDS)
