"""Runs in Weights & Biases. The place is a project, or ENTITY/PROJECT; WANDB_MODE=offline keeps them on the disk."""

from collections.abc import Sequence

import wandb  # pyright: ignore[reportMissingImports]
from wandb.errors import Error  # pyright: ignore[reportMissingImports]

from robustq.jobs.errors import RunError
from robustq.jobs.trackers.runs import Run


def write(runs: Sequence[Run], place: str) -> list[Run]:
    """Write the runs; one that is there already is written again under the same id."""
    entity, slash, project = place.rpartition("/")
    for run in runs:
        try:
            write_run(run, project, entity if slash else None)
        except (Error, OSError) as error:
            raise RunError(f"Weights & Biases, project {place}: {' '.join(str(error).split())}") from error
    return list(runs)


def write_run(run: Run, project: str, entity: str | None) -> None:
    about = {"group": run.sweep, "name": run.name, "id": run.id, "config": {**run.settings, **run.tags}}
    with wandb.init(project=project, entity=entity, resume="allow", **about) as made:
        epochs = max(map(len, run.history.values()), default=0)
        for epoch in range(epochs):
            made.log({name: values[epoch] for name, values in run.history.items()}, step=epoch + 1)
        made.summary.update(run.metrics)
