"""Words that the shell completes, asked as click's own scripts ask."""

import json
import os
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from robustlib.attacks import ATTACKS
from robustlib.datasets.load import home
from robustq.cli import main
from robustq.jobs.commands.shell import completion
from robustq.jobs.results.columns import RESULT_COLUMNS
from tests.helpers.small_store import filled


def completed(*words: str) -> list[str]:
    """What may stand for the last word."""
    shell = ShellComplete(main, {}, "robustq", "_ROBUSTQ_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1]) if item.type == "plain"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTQ_HOME", str(tmp_path / "home"))
    with filled(f"sqlite:///{tmp_path / 'r.db'}"):
        pass
    return tmp_path / "r.db"


def test_names_of_the_kernels(store: Path):
    assert completed("attack", "m.py:build", "--attack", "apgd") == ["apgd-ce", "apgd-dlr", "apgd-t"]
    assert set(ATTACKS) < set(completed("attack", "m.py:build", "--attack", ""))
    assert completed("attack", "le") == ["lenet5"]
    assert completed("audit", "m.py:build", "--dataset", "p") == ["parquet:"]
    assert completed("train", "lenet5", "--objective", "p") == ["pgd"]
    assert completed("attack", "lenet5", "--norm", "L") == ["Linf", "L2", "L1"]
    assert completed("attack", "lenet5", "--normalize", "c") == ["cifar10", "cifar100"]
    assert completed("results", "--format", "c") == ["csv"]
    assert completed("list", "a") == ["attacks"]


def test_names_are_kept_as_long_as_they_are_those_of_the_registries(store: Path, monkeypatch: pytest.MonkeyPatch):
    first = completion.kept_names()
    monkeypatch.setattr(completion, "registry_names", dict)
    assert completion.kept_names() == first != {}
    kept = json.loads((home() / "names.json").read_text())
    (home() / "names.json").write_text(json.dumps(kept | {"stamp": ["0"]}))
    assert completion.kept_names() == {}
    (home() / "names.json").write_text("no JSON")
    assert completion.kept_names() == {}


def test_columns_after_commas_and_behind_a_sign(store: Path):
    assert completed("results", "--group", "rob") == [name for name in RESULT_COLUMNS if name.startswith("rob")]
    assert completed("results", "--group", "model,att") == ["model,attack"]
    assert completed("results", "--sort", "model,-se") == ["model,-seed", "model,-seconds"]
    assert completed("export", "out", "--partition", "model,nor") == ["model,norm"]


def test_sweeps_and_models_of_the_store_that_is_there(store: Path, monkeypatch: pytest.MonkeyPatch):
    assert completed("--store", "r.db", "status", "--sweep", "") == ["small"]
    assert completed("--store", "r.db", "results", "--model", "") == ["a", "b"]
    monkeypatch.setenv("ROBUSTQ_STORE", "r.db")
    assert completed("report", "--sweep", "s") == ["small"]


def test_a_store_that_is_not_there_is_not_made_and_no_error(store: Path):
    assert completed("--store", "none.db", "status", "--sweep", "") == []
    assert completed("status", "--sweep", "") == []
    (store.parent / "notes").write_text("no database at all, however long one looks at it\n" * 50)
    assert completed("--store", "notes", "status", "--sweep", "") == []
    assert sorted(os.listdir(store.parent)) == ["notes", "r.db"]
