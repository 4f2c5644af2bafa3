"""One study with Ray and without: the same rows, outcomes and weights to the bit, and workers that cannot tell."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from robustq.cluster.driver.drive import drive
from robustq.cluster.slots import Slots
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from tests.helpers.both_ways import RAY

pytestmark = RAY
MODEL = """
import json, os, sys
import torch

NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "ROBUSTQ_STORE", "PGPASSWORD", "MINE")

class Net(torch.nn.Module):
    def forward(self, x):
        if any(name in sys.argv[0] for name in ("default_worker", "child_process")):
            told = {name: os.environ.get(name) for name in NAMES}
            told |= {"threads": torch.get_num_threads(), "folder": os.getcwd(), "path": os.getcwd() in sys.path[:-1]}
            told |= {"fault": __import__("faulthandler").is_enabled(), "cores": len(os.sched_getaffinity(0))}
            with open("told.json", "w") as file:
                json.dump(told, file)
        return x.flatten(1)[:, :10]

def make(): return Net()
"""
STUDY = {
    "name": "same",
    "models": {
        "mine": {"file": "mine.py:make"},
        "small": {"arch": "lenet5", "train": {"epochs": 1, "examples": 200, "validation_examples": 50}},
    },
    "attacks": [{"name": "pgd", "steps": 3, "eps": [0.05, 0.1]}, {"name": "square", "queries": 50, "eps": 0.1}],
    "examples": 50,
    "images": 2,
}
# What is measured; clocks, paths and processes are not.
ROWS = (
    "SELECT j.key, j.state, j.attempt, r.n, r.device, r.versions, json_extract(r.extra, '$.mode'), r.clean_accuracy, r.robust_accuracy, "
    "r.robust_accuracy_low, r.distance_median, r.distance_mean, b.sha256, group_concat(a.role || a.sha256) FROM job j "
    "LEFT JOIN result r ON r.job_id = j.id LEFT JOIN example_blob b ON b.job_id = j.id "
    "LEFT JOIN job_artifact a ON a.job_id = j.id GROUP BY j.id ORDER BY j.key"
)


def ran(folder: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ROBUSTQ_RAY", way)
    Path("mine.py").write_text(MODEL)
    study = Study.model_validate(STUDY)
    store, _ = submit(str(folder / "r.db"), study, Origin("same", {}, {}), folder, data_folder=folder)
    drive(store, slots=Slots(1, 0, 2))
    store.engine.dispose()
    with closing(sqlite3.connect(folder / "r.db")) as db:
        rows = db.execute(ROWS).fetchall()
    told = json.loads(Path("told.json").read_text())
    assert told.pop("folder") == str(folder)
    return rows, told


def test_rows_and_surroundings_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("ROBUSTQ_STORE", "PGPASSWORD", "MINE"):
        monkeypatch.setenv(name, "x")
    alone, told = ran(tmp_path / "alone", "0", monkeypatch)
    by_ray, told_by_ray = ran(tmp_path / "ray", "1", monkeypatch)
    assert alone == by_ray and len(alone) == 9 and {row[1] for row in alone} == {"done"}
    assert told == told_by_ray
    assert (told["threads"], told["OMP_NUM_THREADS"], told["MINE"], told["PGPASSWORD"]) == (2, "2", "x", None)
