"""The time of a short command beside that of loading torch: an attack without Ray, and the same with it.

    python benchmarks/startup.py --runs 5

Attacks a linear model on 200 digits, each time with a new store. Loading torch, the attack, and the attack with
ROBUSTQ_RAY=1 take turns, so that a machine which is busy is so for all three. Prints JSON: medians of the seconds that
passed, and of the processors' time that each process took with those that it started and waited for. Of a run with Ray
that is a part: Ray's servers are nobody's children. `work` is what the row itself says the attack took.
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
from pathlib import Path
from typing import Any

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
TORCH = [sys.executable, "-c", "import torch"]
ATTACK = [sys.executable, "-m", "robustq", "attack", "linear.py:build", "--eps", "8/255", "--examples", "200", "--json"]
ALL = {"import torch": (TORCH, "0"), "attack": (ATTACK, "0"), "attack with Ray": (ATTACK, "1")}


def measure(command: list[str], ray: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "linear.py").write_text(MODEL)
        environment = os.environ | {"ROBUSTQ_RAY": ray}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"seconds": seconds, "cpu_seconds": cpu}
    if done.stdout:
        found["work_seconds"] = json.loads(done.stdout)[0]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each, in turn")
    parser.add_argument("--without-ray", action="store_true", help="leave the attack with Ray out")
    given = parser.parse_args()
    names = [name for name in ALL if not (given.without_ray and name == "attack with Ray")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for run in range(given.runs + 1):  # the first fills the caches of the system, and does not count
        for name in names:
            row = measure(*ALL[name])
            found[name] += [row] if run else []
    medians: dict[str, dict[str, Any]] = {
        name: {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        for name, rows in found.items()
    }
    torch, attack = medians["import torch"]["seconds"], medians["attack"]
    goal = 2 * torch + attack["work_seconds"]
    print(json.dumps(medians | {"goal_seconds": round(goal, 2), "of_goal": round(attack["seconds"] / goal, 2)}))


if __name__ == "__main__":
    main()
