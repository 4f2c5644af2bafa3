"""The choice of a device on the command line: the CPUs of this machine, or its GPUs and nothing else."""

import os

from robustq.cluster import gpu_probe
from robustq.cluster.this_machine import gpu_ids
from robustq.jobs.errors import RunError


def use_device(device: str | None) -> None:
    """Let this process and those that it starts compute on "cpu" or "cuda"; None leaves it to what is found.

    Raises RunError where there is no GPU that could be used. To be called before anything looks for one.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "cuda":
        ids = gpu_ids()
        reasons = gpu_probe.trial(tuple(ids))
        if not ids or all(reasons):
            why = "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or "there is none"
            raise RunError(f"--device cuda: this machine has no GPU that can be used ({why}): leave it out to use CPUs")
