"""Several attacks in one command: each gets what it takes of the options, and what none takes is refused."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.settings import NO_ATTACK, NO_RADIUS
from robustq import cli
from robustq.cluster.commands import one_model
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import job

MODEL = """import torch
def build(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""


def test_attacks_without_a_radius_are_those_of_the_registry():
    """Of which a command that only names attacks knows without torch."""
    assert {name for name, one in (ATTACKS | ENSEMBLES).items() if not one.takes_eps} == NO_RADIUS
    assert ATTACKS[NO_ATTACK].settings.keys() == set()


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(one_model, "finish", lambda *args, **kwargs: None)
    (tmp_path / "m.py").write_text(MODEL)

    def queued(*words: str) -> list[tuple[str, float | None, int | None]]:
        words = ("--store", "r.db", "attack", "m.py:build", "--examples", "20", *words)
        result = CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        store = open_store("r.db")
        with store.begin() as db:
            rows = db.execute(sa.select(job.c.attack, job.c.eps, job.c.spec).order_by(job.c.id)).all()
        store.engine.dispose()
        return [(name, eps, spec.get("attack", {}).get("params", {}).get("steps")) for name, eps, spec in rows]

    return queued


def test_clean_beside_others_is_evaluated_once_without_a_radius(attack):
    words = ["--attack", "clean", "--attack", "pgd", "--norm", "Linf", "--eps", "0.1", "--eps", "0.2"]
    assert attack(*words, "--param", "steps=3") == [
        ("clean", None, None),
        ("pgd", 0.1, 3),
        ("pgd", 0.2, 3),
        ("worst-case", 0.2, None),
    ]


@pytest.mark.parametrize(
    "words",
    [["--attack", "clean", "--eps", "0.1"], ["--attack", "clean", "--param", "steps=3"]],
    ids=["eps", "param"],
)
def test_alone_it_refuses_what_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODEL)
    refused = CliRunner().invoke(cli.main, ["--store", "r.db", "attack", "m.py:build", *words])
    assert refused.exit_code == 2 and refused.stderr.startswith("robustq: --attack: clean has no ")
