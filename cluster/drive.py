"""Driving with a person watching."""

from cluster.dispatch import drive
from cluster.progress import Progress
from jobs.engine import Store


def drive_and_watch(store: Store, sweep_id: int | None, cpus_per_job: int | None) -> dict[str, int]:
    """Run the queue to its end, showing progress on stderr; returns the jobs by state."""
    progress = Progress()
    try:
        return drive(store, sweep_id=sweep_id, cpus_per_job=cpus_per_job, watch=progress)
    finally:
        progress.close()
