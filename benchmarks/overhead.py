"""What a job costs beside its own work: robustq's queue, Ray Tune, plain Ray tasks and Optuna, one after the other.

    pip install 'robustq[bench]'
    python benchmarks/overhead.py --jobs 10000

Every job does nothing. Each of the others gets fewer jobs where it takes longer; the time is per job, with the start of
Ray in it, and the largest memory of the process that drives. robustq and Optuna record every result in an SQLite file.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def robustq(n: int, folder: Path) -> None:
    from cluster.drive import drive
    from jobs.engine import open_store
    from jobs.probe import submit_probes

    store = open_store(str(folder / "robustq.db"), create=True, write=True)
    found = drive(store, sweep_id=submit_probes(store, n), cpus_per_job=1)
    with store.begin() as db:
        recorded = db.exec_driver_sql("SELECT count(*) FROM result").scalar()
    assert found["done"] == recorded == n


def ray_tasks(n: int, folder: Path) -> None:
    from cluster.connect import local_ray, local_slots

    with local_ray(local_slots(n, 1)) as ray:
        task = ray.remote(num_cpus=1)(nothing)
        waiting: list[Any] = []
        for number in range(n):
            waiting.append(task.remote(number))
            if len(waiting) >= 64:
                done, waiting = ray.wait(waiting, num_returns=1)
                ray.get(done)
        ray.get(waiting)


def ray_tune(n: int, folder: Path) -> None:
    from cluster.connect import local_ray, local_slots

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    with local_ray(local_slots(n, 1)):
        from ray import tune

        space = {"number": tune.grid_search(list(range(n)))}
        run = tune.RunConfig(storage_path=str(folder), verbose=0)
        found = tune.Tuner(tune_one, param_space=space, run_config=run).fit()
        assert len(found) == n and not found.errors


def optuna(n: int, folder: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n)
    assert len(study.trials) == n


def nothing(number: int) -> int:
    return number


def tune_one(config: dict[str, int]) -> dict[str, int]:
    return {"score": config["number"]}


ALL: dict[str, tuple[Callable[[int, Path], None], float]] = {  # with the share of the jobs that each gets
    "robustq": (robustq, 1),
    "plain Ray tasks, nothing recorded": (ray_tasks, 1),
    "Ray Tune": (ray_tune, 0.005),
    "Optuna, SQLite, one process": (optuna, 0.1),
}


def measure(name: str, n: int, found: Any) -> None:
    function, _ = ALL[name]
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        function(n, Path(folder))
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found.put({"seconds": seconds, "memory_mb": after / 1024, "grown_mb": (after - before) / 1024})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=1, help="of each, in turn; medians are printed")
    parser.add_argument("--only", help="names, by comma")
    given = parser.parse_args()
    names = [name for name in ALL if given.only is None or name in given.only.split(",")]
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    # Each in a process of its own: Ray reads its settings once a process, and memory is counted from the start.
    context = multiprocessing.get_context("spawn")
    for _ in range(given.runs):
        for name in names:
            found = context.Queue()
            process = context.Process(target=measure, args=(name, count(name, given.jobs), found))
            process.start()
            times[name].append(found.get(timeout=3600))
            process.join()
    for name in names:
        n = count(name, given.jobs)
        row = {key: statistics.median(run[key] for run in times[name]) for key in times[name][0]}
        shown = {"ms_a_job": round(1000 * row["seconds"] / n, 2), "memory_mb": round(row["memory_mb"])}
        print(json.dumps({"what": name, "jobs": n} | shown))


def count(name: str, jobs: int) -> int:
    return max(1, round(jobs * ALL[name][1]))


if __name__ == "__main__":
    main()
