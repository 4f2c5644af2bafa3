"""A wrong name at any place of the command line or a study: the one line says which was meant."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from robustq.cli import main
from tests.helpers.small_store import filled

STUDY = """\
dataset: digits
models:
  a: {arch: lenet5, normalize: dataset, train: {epochs: 1}}
attacks:
  - {name: pgd, norm: Linf, eps: 8/255, steps: 3}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with filled(f"sqlite:///{tmp_path / 'r.db'}"):
        pass
    return tmp_path


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["results", "--format", "cvs"], "'csv'"),
        (["list", "atacks"], "'attacks'"),
        (["results", "--sort=-robust_acuracy"], "'robust_accuracy'"),
        (["results", "--where", "modell=a"], "'model'"),
        (["results", "--group", "model,sed"], "'seed'"),
        (["results", "--sweep", "smal"], "'small'"),
        (["status", "--sweep", "Small"], "'small'"),
        (["export", "--partition", "atack", "out"], "'attack'"),
        (["sql", "SELECT * FROM v_resluts"], "'v_results'"),
        (["audit", "lenet5", "--weights", "w", "--norm", "linf", "--eps", "0.1"], "'Linf'"),
        (["attack", "lenet5", "--weights", "w", "--norm", "l2"], "'L2'"),
        (["attack", "lenet5", "--weights", "w", "--split", "tets"], "'test'"),
        (["attack", "lenet5", "--weights", "w", "--normalize", "cifar"], "'cifar10'"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_wrong_name_of_the_command_line(folder: Path, words: list[str], meant: str):
    refused = CliRunner().invoke(main, ["--store", "r.db", *words])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.rstrip().endswith(f"id you mean {meant}?"), refused.stderr


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("dataset: digits", "datset: digits", "'dataset'"),
        ("dataset: digits", "dataset: digit", "'digits'"),
        ("arch:", "arhc:", "'arch'"),
        ("lenet5", "lenet", "'lenet5'"),
        ("normalize: dataset", "normalize: datasets", "'dataset'"),
        ("epochs", "epoch", "'epochs'"),
        ("epochs: 1", "objective: trade, epochs: 1", None),
        ("epochs: 1", "objective: pdg, epochs: 1", "'pgd'"),
        ("epochs: 1", "schedule: cosin", "'cosine'"),
        ("name: pgd", "name: PGD", "'pgd'"),
        ("Linf", "linf", "'Linf'"),
        ("steps", "stpes", "'steps'"),
        ("eps: 8/255", "epsilon: 8/255", "'eps'"),
        ("eps: 8/255", "epss: 8/255", "'eps'"),
        ("steps: 3", "restart: 3", "'restarts'"),
        ("steps: 3", "loss: dlrr", "'dlr'"),
    ],
)
def test_a_wrong_name_in_a_study(folder: Path, old: str, new: str, meant: str | None):
    assert old in STUDY
    (folder / "s.yaml").write_text(STUDY.replace(old, new))
    refused = CliRunner().invoke(main, ["--store", "new.db", "submit", "s.yaml"])
    assert (refused.exit_code, refused.stdout) == (2, "") and refused.stderr.startswith("robustq: s.yaml:")
    assert (": did you mean " in refused.stderr) == (meant is not None), refused.stderr
    assert meant is None or refused.stderr.endswith(f": did you mean {meant}?\n"), refused.stderr
    assert not (folder / "new.db").exists()


def test_a_filter_that_nothing_fits_names_what_is_there(folder: Path):
    """A pattern or a value of a column is no name that could be refused: the hint stands beside the empty answer."""
    shown = CliRunner().invoke(main, ["--store", "r.db", "results", "--attack", "pdg"])
    assert (shown.exit_code, shown.stderr) == (0, "no result has attack pdg, there are: none\n")
