"""The main job as its users run it: commands in processes of their own, local Ray, real files."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.results.rows import DETAILS

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STUDY = """\
name: small
dataset: digits
train: {epochs: 8, batch_size: 32, validation_examples: 60, validation_eps: 0.1}
models:
  a: {arch: lenet5, train: {objective: standard}}
  b: {arch: convnet3, train: {objective: pgd, eps: 0.1, steps: 3}}
  c: {arch: lenet5, dropout_at_inference: 0.3, train: {objective: standard, epochs: 3}}
attacks:
  - {name: fgsm, eps: [0, 0.1]}
  - {name: pgd, steps: 5, eps: 0.1}
  - {name: deepfool, norm: Linf}
examples: 128
images: 4
draws: 20
eot_draws: 3
"""
# All that is measured; clocks and paths are not.
MEASURED = (
    "SELECT j.key, r.n, r.clean_accuracy, r.robust_accuracy, r.robust_accuracy_low, r.any_draw_accuracy, "
    "r.distance_median, r.distance_mean, b.sha256, group_concat(a.role || a.sha256) FROM job j "
    "JOIN result r ON r.job_id = j.id LEFT JOIN example_blob b ON b.job_id = j.id "
    "LEFT JOIN job_artifact a ON a.job_id = j.id GROUP BY j.id ORDER BY j.key"
)


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "robustq", *args]


def environment() -> dict[str, str]:
    # The commands run in folders of their own: say where the code is, as an installation would.
    return dict(os.environ)


def robustq(folder: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*args), cwd=folder, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return done


def measured(folder: Path) -> list[tuple]:
    with sqlite3.connect(folder / ".robustq" / "results.db") as db:
        rows = db.execute(MEASURED).fetchall()
    db.close()
    return rows


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """A folder where the study ran undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "study.yaml").write_text(STUDY)
    robustq(folder, "run", "study.yaml")
    return folder


def test_every_job_is_done_once(calm):
    status = json.loads(robustq(calm, "status", "--json").stdout)
    # Three trainings, four evaluations each, and the worst cases at 0 and 0.1 of each.
    assert status["jobs"] == dict.fromkeys(status["jobs"], 0) | {"done": 3 + 12 + 6}
    assert len(measured(calm)) == 21


def test_results_are_sound(calm):
    rows = json.loads(robustq(calm, "results", "--json").stdout)
    assert [tuple(row) for row in rows] == [(*RESULT_COLUMNS, *DETAILS)] * 18
    by = {(row["model"], row["attack"], row["eps"]): row for row in rows}
    for model in "abc":
        clean = by[model, "fgsm", 0.0]
        if model != "c":
            assert clean["robust_accuracy"] == clean["clean_accuracy"] > 0.8
        assert by[model, "worst-case", 0.1]["robust_accuracy"] <= by[model, "pgd", 0.1]["robust_accuracy"]
        # A point on the boundary of the mean network still divides the draws of a randomised one.
        assert by[model, "deepfool", None]["robust_accuracy"] < (0.7 if model == "c" else 0.01)
        assert by[model, "deepfool", None]["distance_median"] > 0
    assert by["b", "worst-case", 0.1]["robust_accuracy"] > by["a", "worst-case", 0.1]["robust_accuracy"] + 0.2
    # The randomised model is scored on many draws: its mean lies above the share that every draw got right.
    assert by["c", "pgd", 0.1]["robust_accuracy"] > by["c", "pgd", 0.1]["any_draw_accuracy"]


def test_running_again_runs_nothing(calm):
    before = measured(calm)
    again = robustq(calm, "run", "study.yaml")
    assert "21 jobs, 0 of them new" in again.stderr
    with sqlite3.connect(calm / ".robustq" / "results.db") as db:
        assert db.execute("SELECT count(*) FROM driver").fetchone() == (1,)  # the second run needed no driver
    db.close()
    assert measured(calm) == before


def test_files_come_out(calm):
    robustq(calm, "export", "out.arrow")
    robustq(calm, "export", "out.parquet", "--per-example")
    assert pa.ipc.open_file(str(calm / "out.arrow")).read_all().num_rows == 18
    assert pq.read_table(calm / "out.parquet").num_rows == 18 * 128
    robustq(calm, "report", "--sweep", "small", "--out", "out.html", "--figures", "figures")
    page = re.sub("<script>.*?</script>", "", (calm / "out.html").read_text(), flags=re.DOTALL)
    pictures = sorted(path.name for path in (calm / "figures").iterdir())
    assert "eps-curve-fgsm-Linf.png" in pictures
    assert {"training.png", "confusion-a.png", "images-b.png"} <= set(pictures)
    assert page.count('<img src="data:image/png;base64,') == page.count("<img ") > 0
    assert "http:" not in page and "https:" not in page


def test_killed_in_the_middle_and_run_again_gives_the_same_to_the_last_bit(calm, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    killed = 0
    for after in (1, 4):  # results recorded so far when the axe falls
        driver = subprocess.Popen(
            command("run", "study.yaml"), cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while driver.poll() is None and time.monotonic() < deadline:
            if (tmp_path / ".robustq" / "results.db").exists() and len(recorded(tmp_path)) >= after:
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                killed += 1
                break
            time.sleep(0.05)
    assert killed == 2
    assert 1 <= len(recorded(tmp_path)) < 21
    robustq(tmp_path, "run", "study.yaml")
    assert measured(tmp_path) == measured(calm)


def recorded(folder: Path) -> list[tuple]:
    try:
        return measured(folder)
    except sqlite3.OperationalError:  # the tables are not there yet
        return []


def test_an_interrupt_leaves_the_queue_intact_and_names_the_way_on(calm, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    driver = subprocess.Popen(
        command("run", "study.yaml"), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((tmp_path / ".robustq" / "results.db").exists() and recorded(tmp_path)):
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert stderr.splitlines()[-1] == "robustq: stopped; the queue is intact. Go on with: robustq run study.yaml"
    jobs = json.loads(robustq(tmp_path, "status", "--json").stdout)["jobs"]
    assert jobs["leased"] == jobs["running"] == jobs["failed"] == 0
    assert sum(jobs.values()) == 21
    robustq(tmp_path, "run", "study.yaml")
    assert measured(tmp_path) == measured(calm)


MODEL = """\
import torch


def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def three():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))


class Moody(torch.nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 3:
            raise KeyError("no more today")
        return x.flatten(1)[:, :10]
"""


def test_attack_on_a_users_model(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    done = robustq(
        tmp_path, "attack", "mine.py:build", "--attack", "pgd", "--norm", "Linf", "--eps", "8/255",
        "--examples", "100", "--json", "--per-example", "out.parquet",
    )  # fmt: skip
    (row,) = json.loads(done.stdout)
    assert (row["model"], row["dataset"], row["attack"], row["norm"], row["n"]) == (
        "mine.py:build",
        "digits",
        "pgd",
        "Linf",
        100,
    )
    assert row["eps"] == 8 / 255
    examples = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert examples["index"] == list(range(100))
    assert row["robust_accuracy"] == pytest.approx(1 - sum(examples["success"]) / 100)
    right = [p == label for p, label in zip(examples["clean_prediction"], examples["label"], strict=True)]
    assert row["clean_accuracy"] == pytest.approx(sum(right) / 100)
    assert json.loads(robustq(tmp_path, "results", "--json").stdout) == [row]


def test_what_fails_in_a_worker_is_told_and_found_again(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    done = robustq(tmp_path, "attack", "mine.py:Moody", "--examples", "10", code=1)
    assert done.stderr.splitlines()[-1].startswith(
        "robustq: 1 job failed, job 1 with KeyError: 'no more today' (robustq logs 1"
    )
    log = robustq(tmp_path, "logs", "1").stdout
    assert "raise KeyError" in log
    assert robustq(tmp_path, "retry", "1").stdout == "1 job queued again\n"
    assert robustq(tmp_path, "cancel", "1").stdout == "1 job cancelled\n"


def test_train_writes_weights_that_attack_takes(tmp_path):
    args = ("--epochs", "2", "--param", "examples=300", "--param", "validation_examples=50", "--out", "w.safetensors")
    (trained,) = json.loads(robustq(tmp_path, "train", "lenet5", *args, "--json").stdout)
    weights = ("--weights", "w.safetensors", "--attack", "clean", "--examples", "all", "--json")
    (attacked,) = json.loads(robustq(tmp_path, "attack", "lenet5", *weights).stdout)
    assert trained["clean_accuracy"] == attacked["clean_accuracy"]
    assert trained["n"] == attacked["n"] == 449


def test_the_pages_own_model_works_as_written(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    section = page.partition("# Your own model")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(# my_model\.py\n.*?)```", section, re.DOTALL)
    (line,) = re.findall(r"^robustq (attack my_model\.py:build .*)$", section, re.MULTILINE)
    (tmp_path / "my_model.py").write_text(code)
    (row,) = json.loads(robustq(tmp_path, *line.split()).stdout)
    assert (row["model"], row["n"], row["eps"]) == ("my_model.py:build", 200, 8 / 255)
    assert 0 <= row["robust_accuracy_low"] <= row["robust_accuracy"] <= row["robust_accuracy_high"] <= 1


def test_doctor_finds_this_machine_well(tmp_path):
    checks = {row["what"]: row for row in json.loads(robustq(tmp_path, "doctor", "--json").stdout)}
    assert {row["ok"] for row in checks.values()} == {"yes"}
    assert checks["ray"]["found"].startswith("started")
    assert checks["store"]["found"].endswith("is not made yet")


def test_the_readmes_path_from_an_empty_folder_to_the_page(tmp_path):
    """Word for word, by a shell that finds `robustq` on its path."""
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (script,) = re.findall(r"## From an empty folder to the page\n.*?```sh\n(.*?)```", text, re.S)
    folder, programs = tmp_path / "mine", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    (programs / "robustq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m robustq "$@"\n')
    (programs / "robustq").chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-eu"], input=script, cwd=folder, env=environment() | path, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    page = (folder / "first.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "not trusted" in page
    again = re.findall(r"robustq (replay --job \d+)<", page)[0]
    (same,) = json.loads(robustq(folder, *again.split(), "--json").stdout)
    assert same["outcome"] == "equal"
    rows = json.loads(robustq(folder, "results", "--json").stdout)
    # A clean evaluation, two attacks at two radii and their worst cases, of three models.
    assert len(rows) == 3 * (1 + 2 * 2 + 2)
    found = {(row["model"], row["attack"], row["eps"]): row for row in rows}
    assert {model for (model, *_), row in found.items() if row["verdict"] == "fail"} == {"rounded"}
    # What the text below it says: the rounded network looks best under PGD alone.
    naive = {model: found[model, "pgd", 0.1]["robust_accuracy"] for model in ("plain", "robust", "rounded")}
    assert max(naive, key=lambda model: naive[model]) == "rounded"
