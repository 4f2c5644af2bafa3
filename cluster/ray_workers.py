"""Workers that Ray carries: a bundle is a task of Ray's, its frames the items of a generator."""

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from robustq.cluster import worker_ends
from robustq.cluster.messages import Frame, Place, WorkerSettings
from robustq.cluster.process_identity import end
from robustq.cluster.ray_connection import import_ray, slots_of
from robustq.cluster.ray_failures import RayHealth
from robustq.cluster.slots import Slots
from robustq.cluster.this_machine import gpu_count
from robustq.cluster.worker import run_bundle
from robustq.cluster.worker_isolation import enter_folder, forget_secrets
from robustq.cluster.workers import End, Stream
from robustq.jobs.queue.transitions import Claimed

FRAME_SECONDS = 60.0  # to fetch a frame that is there


class RayWorkers:
    """The workers of a Ray. on_cluster: it was there already; else it is this process's own."""

    def __init__(self, ray: Any, *, on_cluster: bool):
        self.ray, self.on_cluster = ray, on_cluster
        self.health = RayHealth(ray)

    def launch(self, claimed: list[Claimed], settings: WorkerSettings, slots: Slots) -> Stream:
        share = settings.gpu_share
        task = remote_bundle(slots.num_gpus * share, slots.num_cpus * share)
        env = {} if self.on_cluster else worker_env(slots)
        return task.options(name=claimed[0].name, runtime_env=env).remote(claimed, settings)

    def collect(
        self, running: Sequence[tuple[Stream, Place | None]], seconds: float
    ) -> tuple[list[tuple[Stream, Frame]], list[tuple[Stream, End]]]:
        ray, frames, ended = self.ray, list[tuple[Stream, Frame]](), list[tuple[Stream, End]]()
        places = {id(stream): (stream, place) for stream, place in running}
        deadline, timeout = time.monotonic() + seconds, seconds
        while places and time.monotonic() < deadline:
            waiting = [stream for stream, _ in places.values()]
            ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout, fetch_local=False)
            for stream in ready:
                if self.on_cluster and self.lost() is not None:
                    return frames, ended
                try:
                    frames.append((stream, ray.get(next(stream), timeout=FRAME_SECONDS)))
                except StopIteration:
                    ended.append((stream, End()))
                    del places[id(stream)]
                except ray.exceptions.RayError as error:
                    if self.lost() is not None:  # no fault of the bundle's
                        return frames, ended
                    ended.append((stream, self.end_of(error, *places.pop(id(stream)))))
            timeout = max(0.0, deadline - time.monotonic())
        return frames, ended

    def end_of(self, error: Exception, stream: Stream, place: Place | None) -> End:
        if isinstance(error, self.ray.exceptions.GetTimeoutError):
            self.stop(stream, place)  # it may run on, and its jobs will be given to another
        reason = worker_ends.describe_end(self.ray, error, place)
        return End(reason, worker_ends.is_setup(self.ray, error))

    def stop(self, stream: Stream, place: Place | None) -> None:
        """By Ray and, since a frozen worker does not hear that, by its process."""
        self.ray.cancel(stream, force=True)
        if place is not None:
            end_remotely(self.ray, place.node_id, place.pid, place.process)

    def lost(self) -> str | None:
        found = self.health.lost()
        return None if found is None else f"Ray's {found}"

    def slots_now(self, slots: Slots) -> Slots | None:
        if not self.on_cluster or not self.health.probe():
            return None
        return slots_of(self.ray, 1, slots.num_cpus)

    def has_ended(self, stream: Stream) -> bool:
        return bool(self.ray.wait([stream], timeout=0)[0])


def bundle_task(claimed: list[Claimed], settings: WorkerSettings) -> Iterator[Frame]:
    """run_bundle in the user's folder, told where it is."""
    import ray
    from ray._private.worker import global_worker

    forget_secrets()
    enter_folder(settings.folder)
    log = getattr(global_worker, "get_err_file_path", str)()  # not of Ray's public interface
    yield from run_bundle(claimed, settings, ray.get_runtime_context().get_node_id(), log or None)


@lru_cache
def remote_bundle(num_gpus: float, num_cpus: float) -> Any:
    """bundle_task as a Ray task of this resource class.

    Decorated once a class: only num_gpus given here, not in .options(), makes Ray start a process a task, and only a
    fresh process is sure to see the GPU it was given. max_retries=0: trying again is the queue's business.
    """
    return import_ray().remote(num_gpus=num_gpus, num_cpus=num_cpus, max_retries=0)(bundle_task)


def end_remotely(ray: Any, node_id: str, pid: int, process: str) -> None:
    """Kill a worker on its node; nobody waits for it, since the node may be as deaf as the worker."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(end).options(scheduling_strategy=there).remote(pid, process)


def worker_env(slots: Slots) -> dict[str, Any]:
    """Runtime environment of a bundle: a CPU bundle beside GPUs must not see them."""
    if slots.num_gpus or not gpu_count():
        return {}
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
