"""The slots that a study will have, told before it runs, and the budget of a submission on them."""

from functools import partial

from robustq.cluster.slots import plan_slots, usable_cpus
from robustq.jobs.submission.budget import Budget
from robustq.jobs.submission.wall_time import Slots
from robustq.jobs.text.durations import read_duration


def slots_here(jobs: int, gpus: int, cpus_per_job: int | None = None, *, on_cluster: bool = False) -> Slots:
    """The slots of this machine, on so many GPUs. jobs: that may run side by side.

    on_cluster: one like them, since how many a cluster has is known only once it is reached.
    """
    found = plan_slots(usable_cpus(), gpus, jobs, cpus_per_job)
    return Slots(1 if on_cluster else found.count, found.num_cpus)


def make_budget(text: str | None, cpus_per_job: int | None = None, *, on_cluster: bool = False) -> Budget | None:
    """The budget that was asked for; None where none was."""
    find_slots = partial(slots_here, cpus_per_job=cpus_per_job, on_cluster=on_cluster)
    return None if text is None else Budget(read_duration(text), text, find_slots)
