"""The cost of a job beside its own work: robustq's queue, Ray Tune, plain Ray tasks and Optuna, one after the other.

    pip install --group bench
    python benchmarks/overhead.py --jobs 10000

Every job does nothing. Each of the others gets fewer jobs where it takes longer; the time is per job, with the start of
Ray in it, and the largest memory of the process that drives. robustq and Optuna record every result in an SQLite file.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def robustq(n: int, folder: Path) -> None:
    from robustq.cluster.driver.drive import drive
    from robustq.jobs.queue.probe_jobs import submit_probes
    from robustq.jobs.store.connection import open_store

    store = open_store(str(folder / "robustq.db"), create=True, write=True)
    found = drive(store, sweep_id=submit_probes(store, n), cpus_per_job=1)
    with store.begin() as db:
        recorded = db.exec_driver_sql("SELECT count(*) FROM result").scalar()
    assert found["done"] == recorded == n


def ray_tasks(n: int, folder: Path) -> None:
    from robustq.cluster.ray_connection import local_ray, local_slots

    with local_ray(local_slots(n, 1)) as ray:
        task = ray.remote(num_cpus=1)(lambda number: number)
        waiting: list[Any] = []
        for number in range(n):
            waiting.append(task.remote(number))
            if len(waiting) >= 64:
                done, waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        ray.get(waiting)


def ray_tune(n: int, folder: Path) -> None:
    from robustq.cluster.ray_connection import local_ray, local_slots

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    with local_ray(local_slots(n, 1)):
        from ray import tune

        space = {"number": tune.grid_search(list(range(n)))}
        run = tune.RunConfig(storage_path=str(folder), verbose=0)
        found = tune.Tuner(lambda config: {"score": config["number"]}, param_space=space, run_config=run).fit()
        assert len(found) == n and not found.errors


def optuna(n: int, folder: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n)
    assert len(study.trials) == n


ALL: dict[str, tuple[Callable[[int, Path], None], float]] = {  # with the share of the jobs that each gets
    "robustq": (robustq, 1),
    "plain Ray tasks, nothing recorded": (ray_tasks, 1),
    "Ray Tune": (ray_tune, 0.005),
    "Optuna, SQLite, one process": (optuna, 0.1),
}


def measure(name: str, n: int) -> dict[str, float]:
    function, _ = ALL[name]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        function(n, Path(folder))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1, help="of each, in turn; medians are printed")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what this starts
    given = parser.parse_args()
    if given.one:
        print("\n" + json.dumps(measure(given.one, given.jobs)))
        return
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ALL}
    # Each in a process of its own: Ray reads its settings once a process, and memory is counted from the start.
    for _ in range(given.runs):
        for name in ALL:
            command = [sys.executable, __file__, "--one", name, "--jobs", str(count(name, given.jobs))]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            times[name].append(json.loads(ended.stdout.strip().splitlines()[-1]))
    for name in ALL:
        n = count(name, given.jobs)
        row = {key: statistics.median(run[key] for run in times[name]) for key in times[name][0]}
        shown = {"ms_a_job": round(1000 * row["seconds"] / n, 2), "memory_mb": round(row["memory_mb"])}
        print(json.dumps({"what": name, "jobs": n} | shown))


def count(name: str, jobs: int) -> int:
    return max(1, round(jobs * ALL[name][1]))


if __name__ == "__main__":
    main()
