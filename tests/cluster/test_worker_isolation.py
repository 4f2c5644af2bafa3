"""Runs beside a user's files that have the names of robustq's modules, of Python's and of installed packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustq.cluster import worker_isolation
from robustq.cluster.driver.drive import drive
from robustq.cluster.slots import Slots, usable_cpus
from robustq.jobs.errors import RunError
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.status import counts
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt
from tests.helpers.both_ways import both_ways

SLOW = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
ROOT = Path(__file__).parents[2]
# As the installed command is: it lies in a folder of its own, and the folder where one works is not on the path.
COMMAND = "import sys\nfrom robustq.cli import main\nsys.exit(main())\n"
STRAYS = ("cli", "robustlib", "ray", "torch", "numpy", "queue", "random", "types", "yaml", "click", "sitecustomize")
MODEL = """
import torch
from cluster import SIZE
from jobs.part import CLASSES

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        with open("weights.txt") as file:  # in the folder where one works
            self.scale = float(file.read())

    def forward(self, x):
        from jobs import late
        return self.scale * late.flat(x)[:, :CLASSES] * SIZE

def make():
    return Net()
"""
STUDY = """
models: {mine: {file: "m.py:make"}, other: {file: "../other/m.py:make"}}
attacks: [{name: fgsm, eps: 0.1}]
examples: 20
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {f"mine/{name}.py": "raise ImportError('a stray')" for name in STRAYS} | {
        "mine/cluster.py": "SIZE = 1",
        "mine/jobs/__init__.py": "",
        "mine/jobs/part.py": "CLASSES = 10",
        "mine/jobs/late.py": "def flat(x):\n    return x.flatten(1)",
        "mine/m.py": MODEL,
        "mine/weights.txt": "2.5",
        "mine/study.yaml": STUDY,
        "other/cluster.py": "SIZE = -1",
        "other/jobs/part.py": "CLASSES = 10",
        "other/jobs/late.py": "def flat(x):\n    return x.flatten(1)[:, 20:]",
        "other/m.py": MODEL,
        "bin/robustq": COMMAND,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path / "mine"


def robustq(folder: Path, *words: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder.parent / "bin" / "robustq"), *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@both_ways
@pytest.mark.slow
def test_a_study_runs_beside_strays_and_a_model_gets_its_own(way: str, folder: Path, monkeypatch):
    monkeypatch.setenv("ROBUSTQ_RAY", way)
    robustq(folder, "run", "study.yaml", "--cpus-per-job", str(usable_cpus()))  # one slot
    assert robustq(folder, "status").startswith("2 done")
    found = {row["model"]: row["clean_accuracy"] for row in json.loads(robustq(folder, "results", "--json"))}
    # One network names the brightest of ten pixels, the other the darkest of ten others: computed here from the images.
    from robustlib.datasets import load

    digits = load.load("digits", "test")
    pixels, y = digits.x[:20].reshape(20, -1), digits.y[:20]
    bright, dark = pixels[:, :10].argmax(1), pixels[:, 20:30].argmin(1)
    assert found == pytest.approx({"mine": (bright == y).mean(), "other": (dark == y).mean()})


def probes(tmp_path: Path):
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    return store, submit_probes(store, 2, seconds=0.0)


class TestRay:
    pytestmark = SLOW

    def test_workers_that_cannot_load_robustq_are_not_tried_again(self, tmp_path: Path, monkeypatch):
        (tmp_path / "robustq.py").write_text("")
        monkeypatch.setattr(worker_isolation, "empty_folder", lambda: str(tmp_path))
        store, sweep_id = probes(tmp_path)
        with pytest.raises(RunError) as error:
            drive(store, sweep_id=sweep_id, slots=Slots(2, 0, 1))
        assert str(error.value) == (
            "the workers cannot load robustq; nothing was run, all jobs are still queued: "
            "ModuleNotFoundError: No module named 'robustq.jobs'; 'robustq' is not a package"
        )
        with store.begin() as db:
            assert counts(db)["queued"] == 2
            assert db.execute(attempt.select()).all() == []
        store.engine.dispose()


def test_an_empty_pythonpath_names_no_folder():
    """Of its parts the empty one would be the working folder, with a stranger's modules before Python's own."""
    assert worker_isolation.absolute({"PYTHONPATH": ""}) == {}


def test_this_process_is_back_in_its_folder_and_relative_paths_hold(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "/abs"]))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    with pytest.raises(KeyError), worker_isolation.isolated():
        assert Path.cwd() != tmp_path and list(Path.cwd().iterdir()) == []
        assert os.environ["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "lib"), "/abs"])
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
        raise KeyError
    assert Path.cwd() == tmp_path and worker_isolation.EMPTY_FOLDERS
    assert (os.environ["PYTHONPATH"], os.environ["RAY_AUTH_TOKEN_PATH"]) == (f"lib{os.pathsep}/abs", "token")
    worker_isolation.enter_folder(str(tmp_path / "not here"))
    assert Path.cwd() == tmp_path
