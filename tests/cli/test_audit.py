"""`robustq audit` on a user's own models: one page, one object, and rows that know whom not to trust."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robustlib.models.loading import call_factory
from robustq.cli import main
from tests.helpers.model_server import answering, serving

MODEL = """
import torch
from sklearn.datasets import load_digits

class Rounded(torch.nn.Module):
    def __init__(self, levels):
        super().__init__()
        self.levels = levels
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        images, classes = load_digits(return_X_y=True)
        x, y = torch.tensor(images).float() / 16, torch.tensor(classes)
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        for _ in range(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.net(x.reshape(-1, 1, 8, 8)), y).backward()
            optimizer.step()

    def forward(self, x):
        return self.net(x if self.levels is None else (x * self.levels).round() / self.levels)

def broken(): return Rounded(15)
def sound(): return Rounded(None)
"""
KEYS = {"verdict", "cause", "naive_robust_accuracy", "adaptive_robust_accuracy", "checks"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audited")
    (place / "m.py").write_text(MODEL)
    return place


def robustq(folder: Path, *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(main, ["--store", "r.db", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def audit(folder: Path, factory: str, *words: str) -> str:
    which = ("audit", f"m.py:{factory}", "--dataset", "digits", "--norm", "Linf", "--eps", "0.15")
    return robustq(folder, *which, "--examples", "60", "--queries", "200", *words)


def test_a_broken_model_is_told_its_cause_and_loses_its_trust(folder: Path):
    attack = ("attack", "m.py:broken", "--dataset", "digits", "--eps", "0.15", "--examples", "60", "--json")
    (row,) = json.loads(robustq(folder, *attack))
    assert row["robust_accuracy"] > 0.8 and row["verdict"] == "fail"  # its gradient is zero, which a quick check sees
    found = json.loads(audit(folder, "broken", "--json"))
    assert set(found) >= KEYS
    assert (found["verdict"], found["cause"]) == ("fail", "non-differentiable")
    assert found["adaptive_robust_accuracy"] < found["naive_robust_accuracy"] / 3
    for check in found["checks"]:
        assert set(check) == {"name", "value", "threshold", "verdict", "note", "examples"}
    failed = next(check for check in found["checks"] if check["name"] == "zero-gradient")
    assert failed["verdict"] == "fail" and failed["value"] > 0.9 and failed["examples"]
    page = audit(folder, "broken")  # known already: nothing runs again
    assert page.startswith("Audit of m.py:broken: Linf, eps 0.15, 60 images\n")
    assert "FAIL: " in page and "Cause: non-differentiable." in page and "What to mend" in page
    rows = json.loads(robustq(folder, "results", "--model", "m.py:broken", "--json"))
    assert {row["verdict"] for row in rows if row["attack"] in ("pgd", "audit")} == {"fail"}
    assert json.loads(robustq(folder, "results", "--model", "m.py:broken", "--only-trusted", "--json")) == []
    assert "not trusted" in robustq(folder, "results")


def test_a_sound_model_keeps_its_trust(folder: Path):
    found = json.loads(audit(folder, "sound", "--json"))
    assert found["verdict"] != "fail" and found["cause"] is None
    rows = json.loads(robustq(folder, "results", "--model", "m.py:sound", "--only-trusted", "--json"))
    assert [row["attack"] for row in rows] == ["audit"]
    checks = json.loads(
        robustq(folder, "sql", "SELECT DISTINCT verdict FROM v_checks WHERE model = 'm.py:sound'", "--json")
    )
    assert "fail" not in [row["verdict"] for row in checks]


def test_a_model_behind_an_address_is_audited_by_its_answers(folder: Path):
    """A network that the test itself serves: the page says what was left out, and the rows that searches left it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        net = call_factory("m.py:sound", {}, {})

    @torch.no_grad()
    def labels(images: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(images).float()).argmax(1).numpy()

    with serving() as server:
        server.reply = answering(labels)
        which = (server.url, "--dataset", "digits", "--norm", "Linf", "--eps", "0.15", "--examples", "20")
        page = robustq(folder, "audit", *which, "--queries", "60")
        searches = [word for name in ("square", "spsa", "hopskipjump", "transfer") for word in ("--attack", name)]
        rows = json.loads(robustq(folder, "attack", *which, *searches, "--param", "queries=66", "--json"))
    assert page.startswith("Audit of digits:predict: Linf, eps 0.15, 20 images\n")
    assert "A naive evaluation (PGD, cross-entropy) finds no gradient, and no adversarial example." in page
    assert "What was left out\n  PGD, FGSM and Auto-PGD on the model's own gradient: it only answers.\n" in page
    assert "Cause: labels-only." in page and "  HopSkipJump " in page and "  PGD on a surrogate " in page
    assert [row["attack"] for row in rows] == ["square", "spsa", "hopskipjump", "transfer", "worst-case"]
    clean, worst = rows[0]["clean_accuracy"], rows[-1]["robust_accuracy"]
    assert worst <= min(row["robust_accuracy"] for row in rows) and worst < clean
    assert rows[3]["surrogate"]["queries"] == 1348 and rows[3]["surrogate"]["agreement"] > 0.8
    # Without a gradient nothing is called robust; but nothing says that searches beat gradients which there are none of.
    told = json.loads(robustq(folder, "sql", "SELECT name FROM v_checks WHERE attack = 'worst-case'", "--json"))
    assert {row["verdict"] for row in rows} == {"fail"} and "square-beats-gradients" not in [
        row["name"] for row in told
    ]


def test_an_audit_of_a_study_is_asked_for_by_one_word(folder: Path):
    (folder / "s.yaml").write_text(
        "name: s\ndataset: digits\naudit: full\nexamples: 40\nmodels: {m: {file: m.py:sound}}\n"
        "attacks: [{name: fgsm, eps: [0, 0.1]}]\n"
    )
    rows = json.loads(robustq(folder, "run", "s.yaml", "--json"))
    assert [(row["attack"], row["eps"]) for row in rows if row["attack"] != "fgsm"] == [
        ("audit", 0.1),
        ("worst-case", 0.1),
    ]
    worst = next(row for row in rows if row["attack"] == "worst-case")
    audited = next(row for row in rows if row["attack"] == "audit")
    assert worst["robust_accuracy"] <= audited["robust_accuracy"]
