"""Runs in MLflow: an experiment a sweep. The place is a tracking URI, such as http://HOST:5000 or sqlite:///mlflow.db."""

from collections.abc import Sequence

from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]
from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]
from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

from robustq.jobs.errors import RunError
from robustq.jobs.text.safe_text import address
from robustq.jobs.trackers.runs import Run

KEY = "robustq.run"
MOST_PARAM, MOST_TAG, AT_ONCE = 500, 5000, 100  # of letters, and of entries in a request


def write(runs: Sequence[Run], place: str) -> list[Run]:
    """Write the runs that are not there; returns those."""
    try:
        client = MlflowClient(tracking_uri=place)
        return [run for run in runs if write_run(client, run)]
    except (MlflowException, OSError) as error:
        raise RunError(f"MLflow at {address(place)}: {' '.join(str(error).split())}") from error


def write_run(client: MlflowClient, run: Run) -> bool:
    """Write one run, unless it is there already."""
    known = client.get_experiment_by_name(run.sweep)
    experiment = client.create_experiment(run.sweep) if known is None else known.experiment_id
    if client.search_runs([experiment], f"tags.`{KEY}` = '{run.id}' and attributes.status = 'FINISHED'"):
        return False
    at = int(1000 * run.at)
    made = client.create_run(experiment, start_time=at, run_name=run.name).info.run_id
    metrics = [Metric(name, value, at, 0) for name, value in run.metrics.items()]
    for name, values in run.history.items():
        metrics += [Metric(name, value, at, epoch) for epoch, value in enumerate(values, 1)]
    params = [Param(name, str(value)[:MOST_PARAM]) for name, value in run.settings.items()]
    tags = [RunTag(name, value[:MOST_TAG]) for name, value in {**run.tags, KEY: run.id}.items()]
    for start in range(0, max(map(len, (metrics, params, tags))), AT_ONCE):
        end = start + AT_ONCE
        client.log_batch(made, metrics[start:end], params[start:end], tags[start:end])
    client.set_terminated(made, "FINISHED", end_time=at)
    return True
