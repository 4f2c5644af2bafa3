"""Starting Ray on this machine, quietly and reachable by nobody else."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from cluster.bundle import run_bundle
from cluster.resources import Slots, usable_cpus


def import_ray() -> Any:
    """Ray, with what it reads from the environment at import set first. Every import of it goes through here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Threads that wait do not spin: on cores shared with other work, spinning costs ten times what it saves.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ray's ports listen on every address. A token of this process's own, never on disk, keeps others out.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    return ray


def gpu_count() -> int:
    """GPUs that Ray would hand out, found without loading torch."""
    import_ray()
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    visible = NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids()
    found = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    return found if visible is None else min(found, len(visible))


@contextmanager
def local_ray(slots: Slots) -> Iterator[Any]:
    """Ray on this machine alone for the length of a block: no dashboard, no usage statistics."""
    ray = import_ray()
    ray.init(
        address="local",  # never a stray cluster that an old file on this machine points to
        num_cpus=max(usable_cpus(), slots.count * slots.num_cpus),
        num_gpus=round(slots.count * slots.num_gpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    try:
        yield ray
    finally:
        ray.shutdown()


@lru_cache
def remote_bundle(num_gpus: float, num_cpus: int) -> Any:
    """run_bundle as a Ray task of this resource class.

    Decorated once a class: only num_gpus given here, not in .options(), makes Ray start a process a task, and only a
    fresh process is sure to see the GPU it was given. max_retries=0: trying again is the queue's business.
    """
    return import_ray().remote(num_gpus=num_gpus, num_cpus=num_cpus, max_retries=0)(run_bundle)


def worker_env(slots: Slots) -> dict[str, Any]:
    """Runtime environment of a bundle: a CPU bundle beside GPUs must not see them."""
    if slots.num_gpus or not gpu_count():
        return {}
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
