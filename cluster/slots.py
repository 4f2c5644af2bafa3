"""Arithmetic of slots: what a bundle needs and what the machines have, without Ray or a GPU."""

import math
import os
from dataclasses import dataclass

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of a GPU that a bundle may have
SPARE = 1.25  # memory that a bundle gets over what it was found to need
GPU_BUNDLE_SECONDS = 60.0  # for which it is worth to start a process anew, with torch and a CUDA context
CONTEXT_BYTES = 2**30  # that each process takes of a GPU beside its tensors


@dataclass(frozen=True)
class Slots:
    """Equal places to run bundles in: how many, and what each one holds. Several small bundles may share a GPU's,
    unless the GPU takes one process at a time (`shared`). gpus: which of this machine's may be used, as in
    CUDA_VISIBLE_DEVICES; None for all that are visible.
    """

    count: int
    num_gpus: float
    num_cpus: int
    shared: bool = True
    gpus: str | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @property
    def smallest(self) -> float:
        """The least share of a slot that a bundle may have."""
        return SHARES[0] if self.num_gpus and self.shared else 1.0

    def share(self, gpu_share: float | None) -> float:
        """The share of a slot that a bundle gets which needs so much of a GPU; a whole one where nothing is known."""
        return gpu_share if self.num_gpus and self.shared and gpu_share is not None else 1.0


def plan_slots(cpus: int, gpus: int, jobs: int, cpus_per_job: int | None = None) -> Slots:
    """One slot a GPU where there are GPUs; else the CPUs shared among the jobs of the whole sweep.

    jobs: that the sweep can run side by side, not those left of it: the number of threads must not change when a sweep
    is taken up again, since sums over threads may differ in the last bits.
    """
    if gpus:
        return Slots(gpus, 1, cpus_per_job or max(1, cpus // gpus))
    threads = cpus_per_job or max(1, cpus // max(1, min(cpus, jobs)))
    return Slots(max(1, cpus // threads), 0, threads)


def cluster_slots(nodes: list[tuple[int, int]], jobs: int, cpus_per_job: int | None = None) -> Slots:
    """The same over the CPUs and GPUs of a cluster's nodes: a bundle lies on one of them."""
    gpus = sum(node_gpus for _, node_gpus in nodes)
    if gpus:
        with_gpus = [(cpus, node_gpus) for cpus, node_gpus in nodes if node_gpus]
        return Slots(gpus, 1, cpus_per_job or max(1, min(cpus // node_gpus for cpus, node_gpus in with_gpus)))
    smallest = min((cpus for cpus, _ in nodes if cpus), default=1)
    share = max(1, jobs // max(1, len(nodes)))
    threads = cpus_per_job or max(1, smallest // max(1, min(smallest, share)))
    return Slots(max(1, sum(cpus // threads for cpus, _ in nodes)), 0, threads)


def share_for(peak_bytes: int, total_bytes: int) -> float:
    """The smallest share of a GPU that holds what a process was found to need, with some to spare."""
    need = SPARE * peak_bytes + CONTEXT_BYTES
    return next((share for share in SHARES if need <= share * total_bytes), 1.0)


def next_share(share: float) -> float | None:
    """The share to try after one that was too small; None after a whole GPU."""
    return next((larger for larger in SHARES if larger > share), None)


def bundle_size(queued: int, slots: int, most: int = 64) -> int:
    """How many jobs to claim at once: no more than a slot's share of them, at most `most`."""
    return max(1, min(most, -(-queued // slots)))


def bundle_budget(left: float, slots: int, least: float = 0.0) -> float:
    """How much estimated work to claim at once: half of a slot's share of what is left, so that the last bundles are
    small; more, up to the whole share, where that is less than `least`. What costs nothing, all.
    """
    return max(left / (2 * slots), min(left / slots, least)) if left > 0 else math.inf


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
