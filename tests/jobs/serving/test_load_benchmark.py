"""`benchmarks/serving.py`, short: each server answers its clients, rightly, and is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "serving.py"


@pytest.mark.slow
def test_each_server_is_measured(place: Path, tmp_path: Path):
    words = [str(place), "--clients", "4", "--seconds", "0.5", "--kinds", "npy", "--out", str(tmp_path / "rows.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["server"] for row in rows] == ["plain", "robustq", "robustq, no batches"]
    for row in rows:
        assert row["requests"] >= 4 and 0 < row["p50_ms"] <= row["p99_ms"] and 10 < row["end_mb"] < 1000
        assert 0 < row["cpu_ms"] < 1000 and row["answers"] >= row["requests"]
        assert row["ratio"] == pytest.approx(row["per_second"] / rows[0]["per_second"])
    assert done.stdout.count("\n") == 4 and "robustq, no batches" in done.stdout
