"""Models as people write them, through the command line: the right numbers, or one line."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from robustq import cli

COLUMNS = ("index", "clean_prediction", "adversarial_prediction", "success", "distance", "broken_by")

MODELS = """
import torch
from torch import nn
torch.manual_seed(0)
DIGITS = __import__("sklearn.datasets").datasets.load_digits()
X = torch.tensor(DIGITS.images / 16, dtype=torch.float32).flatten(1)
CENTRES = torch.stack([X[torch.tensor(DIGITS.target) == k].mean(0) for k in range(10)]) - 0.5
class Nearest(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.register_buffer("centres", CENTRES)
        self.inplace = inplace
    def forward(self, x):
        x = x.sub_(0.5) if self.inplace else x - 0.5
        return -torch.cdist(x.flatten(1), self.centres)
class Odd(Nearest):
    def __init__(self, kind):
        super().__init__(False)
        self.kind = kind
    def eval(self):
        if self.kind == "eval": raise RuntimeError("no\\nmodes")
        return super().eval()
    def forward(self, x):
        logits = super().forward(x)
        return {"tuple": (logits, x)}.get(self.kind, logits)
class Broken(nn.Module):
    def __init__(self):
        raise KeyError("weights")
def pure(): return Nearest(False)
def in_place(): return Nearest(True)
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False).requires_grad_(False)).eval()
def fitted():
    net = linear()
    net[1].weight.copy_(CENTRES)
    return net
def dynamic():
    b = torch.export.Dim("b")
    return torch.export.export(fitted(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: b},)).module()
def static(): return torch.export.export(fitted(), (torch.zeros(2, 1, 8, 8),)).module()
def program(): return torch.export.export(fitted(), (torch.zeros(2, 1, 8, 8),))
def evals(): return Odd("eval")
def pairs(): return Odd("tuple")
def a_class(): return Nearest
"""


@pytest.fixture
def robustq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODELS.lstrip())

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli.main, list(args), prog_name="robustq")

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("odd", "plain"), [("in_place", "pure"), ("dynamic", "fitted")])
def test_the_same_numbers(robustq, tmp_path, odd, plain):
    rows, examples = [], []
    for name in (odd, plain):
        result = robustq(
            "attack", f"m.py:{name}", "--attack", "pgd", "--eps", "16/255", "--examples", "100",
            "--per-example", f"{name}.parquet", "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        rows += json.loads(result.stdout)
        table = pq.read_table(tmp_path / f"{name}.parquet").to_pydict()
        examples.append({key: str(values) for key, values in table.items() if key in COLUMNS})
    numbers = [[row[key] for key in ("n", "clean_accuracy", "robust_accuracy")] for row in rows]
    assert numbers[0] == numbers[1] and numbers[0][1] > 0.3 and rows[0]["mode"].startswith("float32")
    assert examples[0].keys() == set(COLUMNS) and examples[0] == examples[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("evals", "the model's eval() fails: RuntimeError: no modes"),
        ("pairs", "expected logits of shape (2, classes) from the model, got tuple: let forward return the logits alone"),
        ("a_class", "{tmp}/m.py:a_class returned the class Nearest, expected one of it"),
        ("Broken", "{tmp}/m.py:Broken failed: KeyError: 'weights' (m.py:"),
        ("static", "the model fails on float32 images of shape ("),
        ("program", "the model fails on float32 images of shape (2, 1, 8, 8): RuntimeError: Unable to call ExportedProgram"),
    ],
)  # fmt: skip
def test_one_line(robustq, tmp_path, model, line):
    result = robustq("attack", f"m.py:{model}", "--examples", "20")
    assert result.exit_code == 2 and result.stdout == ""
    (last,) = [text for text in result.stderr.splitlines() if text.startswith("robustq: ")]
    assert last.startswith(f"robustq: MODEL: {line}".format(tmp=tmp_path)) and result.stderr.endswith(f"{last}\n")
    assert model != "static" or "torch.export.Dim('batch')" in last
