"""A child process that is started before it is known what to run: torch is loaded there while the driver checks.

For commands of one job: where it turns out that nothing is to run, or on Ray, the process is ended unused.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from robustq.cluster.child import Child
from robustq.cluster.machine_locks import free_of
from robustq.cluster.slots import plan_slots, usable_cpus
from robustq.cluster.this_machine import gpu_ids, ray_is_forced
from robustq.jobs.errors import RunError


class EarlyChild:
    """At most one process. cpus_per_job: threads of its job, None for what the machine has."""

    def __init__(self, cpus_per_job: int | None):
        self.cpus_per_job = cpus_per_job
        self.child: Child | None = None

    def start(self) -> None:
        """Start it, in the hope that all GPUs are sound: else another one is started once that is known."""
        if not ray_is_forced():
            ids = gpu_ids()
            slots = plan_slots(usable_cpus(), len(ids), 1, self.cpus_per_job)
            with suppress(RunError):  # told where it is needed
                self.child = Child(slots.num_cpus, (free_of(ids) or ids)[0] if ids else None)

    def load(self) -> None:
        """Have it load torch: it is sure now that there is something to run."""
        if self.child is not None:
            self.child.send(None)

    def take(self) -> Child | None:
        """The process, from now on the caller's to end."""
        child, self.child = self.child, None
        return child


@contextmanager
def early_child(cpus_per_job: int | None, *, is_one: bool = True) -> Iterator[EarlyChild]:
    """For the length of a block, at whose end it is ended if nobody has taken it. is_one: a single job is asked for."""
    early = EarlyChild(cpus_per_job)
    try:
        if is_one:
            early.start()
        yield early
    finally:
        if (child := early.take()) is not None:
            child.close()
