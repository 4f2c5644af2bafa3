"""`benchmarks/served_attacks.py`, small: it finds the same on all three, and says what differs and why."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlib.models.black_box import BlackBoxModel

pytest.importorskip("tabulate", reason="needs the dependency group `peers`")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SQUARE = ["--examples", "12", "--eps", "0.08", "--queries", "40", "--seed", "3"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("served_attacks")
    for name in ("served_attacks", "serving"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_program_server_and_network_are_attacked_alike(place: Path, tmp_path: Path):
    script = [sys.executable, str(BENCHMARKS / "served_attacks.py"), str(place)]
    done = subprocess.run([*script, *SQUARE, "--out", "rows.jsonl"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    found, pairs = {row["model"]: row for row in rows[:3]}, rows[3:]
    program, served, network = (found[name] for name in ("program", "served", "network"))
    for name in ("images", "clean_accuracy", "robust_accuracy"):
        assert program[name] == served[name] == network[name]
    assert 0 < program["robust_accuracy"] < program["clean_accuracy"] and 12 < program["queries"] <= 12 * 40
    assert [row["pair"] for row in pairs] == ["program, served", "program, network", "served, network"]
    for row in pairs:
        assert row["shown"] == 36 and row["verdicts"] == row["classes"] == []
        assert row["largest_difference"] < row["tolerance"]
    assert "robust_accuracy" in done.stdout and "largest_difference" in done.stdout


def by_one_pixel(shift: float = 0.0) -> BlackBoxModel:
    """Two classes: the first pixel of an image, and a half; class 0 where the pixel is at least that."""
    return BlackBoxModel(lambda x: torch.stack([x[:, 0, 0, 0] + shift, torch.full((len(x),), 0.5)], 1), 2)


def images(*pixels: float) -> Tensor:
    return torch.tensor(pixels)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def test_a_walk_is_followed_to_where_it_forks(benchmark: Any):
    """The other model is off by 0.01: of candidates with margins of -0.2, -0.1 and 0.005 only the last is decided
    otherwise, since it alone is nearer to 0 than that.
    """
    walk = benchmark.Beside(by_one_pixel(), by_one_pixel(0.01), torch.tensor([0]))
    for pixels in ((0.7,), (0.6,), (), (0.495,), (0.2,)):
        assert len(walk(images(*pixels))) == len(pixels)
    assert walk.fork and walk.query == 3 and walk.explained
    assert walk.gap == pytest.approx(0.005, abs=1e-6) and walk.rounding == pytest.approx(0.01, abs=1e-6)


def test_a_verdict_that_no_rounding_explains_is_told(benchmark: Any):
    walk = benchmark.Beside(by_one_pixel(), by_one_pixel(1e-4), torch.tensor([0]))
    for pixel in (0.7, 0.65, 0.58):
        walk(images(pixel))
    assert (walk.fork, walk.query, walk.explained) == (False, 2, False)
    assert walk.gap == pytest.approx(0.05, abs=1e-6)


@pytest.mark.slow
def test_another_function_is_wrong(benchmark: Any):
    """One pixel moves by 0.1: of pixels of 0.55 and 0.9 only the first falls, and neither where the model is off by 1."""
    x, y = (images(0.55, 0.9) * 255).byte(), torch.tensor([0, 0])
    models = {"program": by_one_pixel(), "served": by_one_pixel(), "network": by_one_pixel(1.0)}
    rows: list[dict] = []
    wrong = benchmark.compare(benchmark.Case(models, x, y, 0.1, 30, 0), rows.append)
    robust = {row["model"]: row["robust_accuracy"] for row in rows if "model" in row}
    assert robust == {"program": 0.5, "served": 0.5, "network": 1.0}
    pairs = {row["pair"]: row for row in rows if "shown" in row}
    assert pairs["program, served"]["verdicts"] == [] and pairs["program, served"]["largest_difference"] == 0
    assert pairs["program, network"]["verdicts"] == [0]
    assert [one["image"] for one in pairs["program, network"]["classes"]] == [0, 0]
    assert wrong == [f"{pair}, network: a logit differs by 1" for pair in ("program", "served")]
