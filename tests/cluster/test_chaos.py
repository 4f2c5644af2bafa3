"""A short storm of `benchmarks/chaos.py`: workers, drivers and nodes die at random, and nothing is lost or doubled."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(420)]


def storm(folder: Path, store: str, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--store",
        store,
        "--folder",
        str(folder),
        "--seeds",
        "2",
        "--pause",
        "4",
        *options,
    ]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return json.loads((folder / "report.json").read_text())


def check(report: dict[str, Any]) -> None:
    # Every job ended, done or for its own reason, and all that is done is what a calm run gives.
    assert report["states"] == report["calm_states"] == {"done": 56, "failed": 1}
    assert report["failures"] == [["WorkerDied", "poison", 1]]
    assert (report["results"], report["differing_results"], report["results_of_one_job"]) == (16, 0, [[1]])
    # A worker, a node or a frozen worker takes one attempt along, a driver those of its two slots.
    kills = report["kills"]
    assert sum(kills.values()) >= 4
    singles = sum(kills.get(kind, 0) for kind in ("worker", "node", "frozen worker"))
    assert report["lost_attempts"] <= singles + 2 * kills.get("driver", 0)


def test_a_storm(tmp_path):
    check(storm(tmp_path, str(tmp_path / "r.db"), "--seconds", "35"))


@pytest.mark.postgres
@pytest.mark.skipif("ROBUSTQ_STORM" not in os.environ, reason="set ROBUSTQ_STORM: it has once not ended in time")
def test_a_storm_with_three_drivers_on_postgres(tmp_path, postgres):
    check(storm(tmp_path, postgres, "--seconds", "35", "--drivers", "3", "--random", "1"))
