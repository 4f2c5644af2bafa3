"""What a bundle needs and what this machine has: plain arithmetic, so that it can be tested without Ray or a GPU."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Slots:
    """Equal places to run bundles in: how many, and what each one holds."""

    count: int
    num_gpus: float
    num_cpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"


def plan_slots(cpus: int, gpus: int, jobs: int, cpus_per_job: int | None = None) -> Slots:
    """One slot a GPU where there are GPUs; else the CPUs shared among the jobs of the whole sweep.

    jobs: that the sweep can run side by side, not those left of it: the number of threads must not change when a sweep
    is taken up again, since sums over threads may differ in the last bits.
    """
    if gpus:
        return Slots(gpus, 1, cpus_per_job or max(1, cpus // gpus))
    threads = cpus_per_job or max(1, cpus // max(1, min(cpus, jobs)))
    return Slots(max(1, cpus // threads), 0, threads)


def bundle_size(queued: int, slots: int, most: int = 64) -> int:
    """How many jobs to claim at once: few enough that every slot gets some, at most `most`."""
    return max(1, min(most, -(-queued // (2 * slots))))


def bundle_budget(left: float, slots: int) -> float:
    """How much estimated work to claim at once: half of a slot's share of what is left."""
    return left / (2 * slots)


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
