"""The cost of questions to a large store: a filtered `results`, and the export of every example's outcome.

    python benchmarks/store.py                                     # 100,000 results of 1,000 examples each
    python benchmarks/store.py --results 1000 --examples 10000

The store is made up: rows as a sweep of 10 models, 10 attacks, 10 radii and as many seeds as it takes would leave them,
outcomes drawn at random, some hundred different ones. Each command runs in a process of its own, as a user starts it.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from robustlib.metrics import summarise
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import example_blob, job, result, sweep, sweep_job

ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "cw", "autoattack")
ROOT = Path(__file__).parents[1]
KINDS = 100  # different outcomes
BATCH = 2_000


def outcome(n: int, seed: int) -> dict[str, np.ndarray]:
    """What an attack might have found on n examples."""
    random = np.random.default_rng(seed)
    wrong = random.random(n) < 0.1
    success = wrong | (random.random(n) < random.random())
    label = random.integers(0, 10, n)
    return {
        "index": np.arange(n),
        "label": label,
        "clean_prediction": np.where(wrong, (label + 1) % 10, label),
        "adversarial_prediction": np.where(success, (label + 1) % 10, label),
        "success": success,
        "distance": np.where(success, np.where(wrong, 0, 0.03 * random.random(n)), np.nan).astype(np.float32),
        "broken_by": np.where(success, np.where(wrong, "clean", "pgd"), ""),
        "clean_correct": 1 - wrong.astype(np.float32),
        "adversarial_correct": 1 - success.astype(np.float32),
        "adversarial_survived": ~success,
        "queries": np.full(n, -1),
    }


def build(path: Path, results: int, n: int) -> None:
    """A store with so many results of n examples each."""
    store = open_store(str(path), create=True, write=True)
    kinds = []
    for seed in range(KINDS):
        columns = outcome(n, seed)
        kinds.append((summarise(columns), example_outcomes.encode(example_outcomes.to_table(columns))))
    with store.begin() as db:
        row = {"name": "large", "spec": {}, "identity": "0" * 64, "created_at": 0.0}
        sweep_id = db.execute(sa.insert(sweep).values(**row)).inserted_primary_key
        assert sweep_id is not None
        for first in range(0, results, BATCH):
            numbers = range(first, min(first + BATCH, results))
            db.execute(sa.insert(job), [job_row(i) for i in numbers])
            db.execute(
                sa.insert(sweep_job),
                [{"sweep_id": sweep_id[0], "job_id": i + 1, "model": f"model-{i % 10}"} for i in numbers],
            )
            db.execute(sa.insert(result), [result_row(i, kinds[i % KINDS][0]) for i in numbers])
            db.execute(sa.insert(example_blob), [blob_row(i, n, kinds[i % KINDS][1]) for i in numbers])
    store.engine.dispose()


def job_row(i: int) -> dict[str, Any]:
    attack, eps, seed = ATTACKS[i // 10 % 10], (i // 100 % 10 + 1) / 255, i // 1000
    spec = {"kind": "eval", "attack": {"name": attack, "eps": eps}, "seed": seed, "padding": "x" * 1000}
    key = hashlib.sha256(str(i).encode()).hexdigest()
    return {
        "id": i + 1, "key": key, "kind": "eval", "spec": spec, "arch": "resnet18", "defence": "pgd",
        "dataset": "cifar10", "attack": attack, "norm": "Linf", "eps": eps, "seed": seed,
        "recipe": f"{attack}(steps=20)", "bundle_key": key, "state": "done", "created_at": 0.0,
    }  # fmt: skip


def result_row(i: int, summary: dict[str, Any]) -> dict[str, Any]:
    versions = {"python": "3.12", "torch": "2.14", "numpy": "2.4", "kernel": "3"}
    rest = {"job_id": i + 1, "fence": 1, "seconds": 1.0, "device": "cpu: made up", "versions": versions}
    return summary | rest | {"recorded_at": 1.8e9 + i, "extra": {"mode": "bfloat16", "stages": []}}


def blob_row(i: int, n: int, data: bytes) -> dict[str, Any]:
    return {"job_id": i + 1, "n": n, "sha256": hashlib.sha256(data).hexdigest(), "data": data}


# The command's own peak: what wait4 tells holds that of this process, which it was forked from.
RUN = """
import re, sys, time
start = time.perf_counter()
from robustq import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(time.perf_counter() - start, time.process_time(), peak / 1024, file=open(2, "w"))
"""


def timed(*words: str) -> dict[str, float]:
    """A command's seconds, of the clock and of processors, and the most memory that it held."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    names = ("seconds", "cpu_seconds", "peak_mb")
    return dict(zip(names, map(float, done.stderr.splitlines()[-1].split()), strict=True))


def show(what: str, found: dict[str, float]) -> None:
    print(f"{what}: {', '.join(f'{name} {value:.3g}' for name, value in found.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--examples", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="Folder to keep the store in, used again where it is there.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = (given.keep or Path(scratch)) / f"{given.results}x{given.examples}.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            build(path, given.results, given.examples)
        print(f"store: {given.results} results, {given.examples} examples each, {path.stat().st_size / 2**20:.0f} MB")
        store = ("--store", str(path))
        questions = {
            "one row": ("--model", "model-3", "--attack", "fgsm", "--eps", "1/255", "--seed", "3"),
            "an attack at a radius": ("--attack", "autoattack", "--eps", "8/255", "--model", "model-1"),
            "a pattern and a condition": ("--model", "*-7", "--attack", "pgd", "--where", "robust_accuracy>0.8"),
            "over seeds, of one attack": ("--attack", "square", "--over-seeds"),
            "all, as CSV": ("--format", "csv"),
        }
        for name, options in questions.items():
            show(f"results, {name}", timed(*store, "results", *options))
        rows = given.results * given.examples
        for name, target in {"parquet": "e.parquet", "arrow": "e.arrow", "folder": "folder"}.items():
            found = timed(*store, "export", "--per-example", str(Path(scratch) / target))
            show(f"export, {name}", found | {"million_rows_a_second": rows / found["seconds"] / 1e6})


if __name__ == "__main__":
    main()
