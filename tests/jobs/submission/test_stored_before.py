"""A store that was written before the modules moved to where they are: it is read, and its studies queue nothing anew."""

import sqlite3
from pathlib import Path

import pytest

from robustq.jobs.results.rows import result_rows
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.upgrade import upgrade
from robustq.jobs.submission.study_sources import submit_file

# Made by 585efe5, whose kernels were version 7, from this study; without its events, logs and machine. Never change it.
STORED = Path(__file__).parents[1] / "store" / "store-before-moves.sql"
STUDY = """
name: {name}
dataset: digits
models:
  plain: {{arch: lenet5, train: {{epochs: 1, examples: 100, validation_examples: 20}}}}
  robust: {{arch: lenet5, train: {{epochs: 1, examples: 100, validation_examples: 20, objective: pgd, eps: 0.1, steps: 2}}}}
attacks:
  - {{name: pgd, steps: 3, eps: [0.05, 0.1]}}
  - {{name: deepfool, norm: L2}}
seeds: [0]
examples: 20
"""


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for place in ("robustq.jobs.specs", "robustq.jobs.submission.expand_study"):
        monkeypatch.setattr(f"{place}.KERNEL_VERSION", "7")
    with sqlite3.connect(tmp_path / "r.db") as db:
        db.executescript(STORED.read_text())
    db.close()
    return str(tmp_path / "r.db")


@pytest.mark.parametrize("name", ["before-the-moves", "again"])
def test_a_study_of_before_queues_nothing(stored: str, name: str, tmp_path: Path):
    """Neither the study itself, which is known as a whole, nor one of another name with the same jobs."""
    upgrade(stored)
    (tmp_path / "s.yaml").write_text(STUDY.format(name=name))
    _, submitted = submit_file(stored, tmp_path / "s.yaml", {})
    assert (submitted.jobs, submitted.new) == (10, 0)


def test_its_results_are_read(stored: str):
    upgrade(stored)
    with open_store(stored).begin() as db:
        rows = result_rows(db)
    robust = {(row["model"], row["attack"], row["eps"]): row["robust_accuracy"] for row in rows}
    assert robust == {
        (model, attack, eps): accuracy
        for model, distance in (("plain", 0.05), ("robust", 0.0))
        for attack, eps, accuracy in (
            ("pgd", 0.05, 0.2), ("pgd", 0.1, 0.2), ("worst-case", 0.1, 0.2), ("deepfool", None, distance),
        )
    }  # fmt: skip
