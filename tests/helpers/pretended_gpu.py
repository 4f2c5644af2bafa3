"""A GPU that is pretended in Ray's workers: Ray hands out one that it was told of, and torch computes on the CPU.

Real are Ray, its shares of a GPU, the processes that share one, CUDA_VISIBLE_DEVICES in each, the queue and the rows.
Pretended are the device of the tensors (the CPU), the GPU's name, its memory, the limit that a process has of it, and
what of it a job took.
"""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

GIB = 2**30
NAME = "Pretended GPU"
TOTAL, PEAK = 80 * GIB, 9 * GIB  # of which a quarter holds a job, with what is to spare
BROKEN = "PRETENDED_BROKEN_GPU"  # the variable that names the GPU on which every job meets an ECC error


def pretend() -> None:
    """What torch says of GPUs in this process from now on."""
    import torch

    share = [1.0]
    said: dict[str, Any] = {
        "init": lambda: None,
        "set_per_process_memory_fraction": lambda fraction, device=None: share.__setitem__(0, fraction),
        "get_per_process_memory_fraction": lambda device=None: share[0],
        "mem_get_info": lambda device=None: (TOTAL, TOTAL),
        "memory_reserved": lambda device=None: PEAK,
        "max_memory_reserved": lambda device=None: PEAK,
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=TOTAL),
        "reset_peak_memory_stats": lambda device=None: None,
        "synchronize": lambda device=None: None,
    }
    for name, value in said.items():
        setattr(torch.cuda, name, value)

    from robustq.cluster import worker
    from robustq.jobs.running import evaluation, run

    context, surroundings, probed = run.Context, evaluation.surroundings, worker.probed
    run.Context = lambda device, **others: context(device="cpu", **others)  # pyright: ignore
    evaluation.surroundings = lambda context: surroundings(context) | {"device": f"cuda: {NAME}"}

    def probed_there(settings: Any) -> dict[str, Any]:
        if os.environ["CUDA_VISIBLE_DEVICES"] == os.environ.get(BROKEN):
            error = getattr(torch, "AcceleratorError", RuntimeError)  # a worker has no tests to import it from
            raise error("CUDA error: uncorrectable ECC error encountered")
        return probed(settings)

    worker.probed = probed_there


def bundle_on_a_pretended_gpu(claimed: Any, settings: Any) -> Iterator[Any]:
    """`bundle_task` of cluster/ray_workers.py on it."""
    from robustq.cluster import ray_workers

    pretend()
    yield from ray_workers.bundle_task(claimed, settings)
