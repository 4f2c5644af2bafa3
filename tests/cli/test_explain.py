"""`robustq explain` on a user's own model: a table, one object, one page."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from robustq.cli import main

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 8, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)).eval()
"""
WHICH = ("explain", "m.py:build", "--dataset", "digits", "--eps", "0.1", "--examples", "10", "--images", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("explained")
    (place / "m.py").write_text(MODEL)
    return place


def robustq(folder: Path, *words: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(main, ["--store", "r.db", *words])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_is_explained_in_a_table_an_object_and_a_page(folder: Path):
    made = robustq(folder, *WHICH, "--method", "saliency", "--out", "page.html")
    assert made.exit_code == 0, made.output
    assert re.search(r"m.py:build +saliency +Linf +0.1 +0 +10 +top-k +[\d.]+ \[", made.stdout)
    assert made.stdout.index("noise") < made.stdout.index("explanation-attack")
    rows = json.loads(robustq(folder, *WHICH, "--method", "saliency", "--json").stdout)  # nothing runs again
    assert [row["against"] for row in rows] == ["clean", "noise", "pgd", "explanation-attack"]
    assert all(row["n"] == 10 for row in rows) and rows[3]["kept"] == 10
    page = (folder / "page.html").read_text()
    assert f"{100 * rows[1]['top_intersection']:.1f} [" in page and f"{100 * rows[3]['top_intersection']:.1f} [" in page
    assert page.count('alt="Image ') == 2 * 4 and "Explanations of m.py:build under attack" in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "salience"), "--method: unknown method 'salience', expected one of: saliency, "),
        (("--method", "saliency", "--method", "lime", "--param", "samples=9"), "expected one --method to set it for"),
        (("--param", "step=9"), "--method: integrated-gradients has no parameter 'step', it has: baseline, steps"),
        (("--method", "occlusion", "--param", "stride=9"), "--method: occlusion: expected a stride of at most"),
        (("--against", "pgdd"), "--against: against: unknown name 'pgdd', expected one of: noise, "),
        (("--eps", "far"), "--eps: expected a number such as 8/255, got 'far'"),
        (("--norm", "L7"), "L7"),
    ],
    ids=["method", "two methods", "setting", "stride", "attack", "eps", "norm"],
)
def test_what_cannot_be_explained_is_one_line(folder: Path, words: tuple[str, ...], line: str):
    found = robustq(folder, *WHICH, *words)
    text = str(found.exception) + found.output
    assert found.exit_code == 2 and line in text and "Traceback" not in found.output, text
