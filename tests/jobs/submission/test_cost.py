"""The cost of a study before it runs, counted by hand."""

import json
import time
from pathlib import Path

import pytest
import torch

from robustlib.inference.replica import Replica
from robustlib.inference.throughput import Rates, Work, calibrate
from robustlib.settings import TrainSettings
from robustq.jobs.submission import dry_run
from robustq.jobs.submission.expected import run_shares, share_standing
from tests.helpers.steady_calibration import fix_rates

STUDY = """
name: small
dataset: digits
models:
  a: {arch: lenet5, train: {objective: fgsm, eps: 0.1, epochs: 3, examples: 100}}
attacks:
  - {name: pgd, steps: 5, restarts: 2, eps: [0, 0.1, 0.2]}
  - {name: autoattack, eps: 0.1}
examples: 20
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_the_jobs_of_a_study(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fix_rates(monkeypatch, lambda model: Rates(forwards=1000.0, gradients=500.0))
    url = f"sqlite:///{tmp_path / 'none.db'}"
    found = json.loads(dry_run.dry_run(url, study, {}, as_json=True))
    rows = {(row["job"], row["attack"], row["eps"]): row for row in found["jobs"]}
    assert len(rows) == 5 and not (tmp_path / "none.db").exists()
    # Three epochs of 100 images: a step's two gradients and three passes, and one of each for FGSM.
    assert (rows["train", None, None]["forwards"], rows["train", None, None]["gradients"]) == (1200, 900)
    # Each of 20 images: three verdicts, and at most two restarts of five steps, twice over for the two radii together.
    assert (rows["eval", "pgd", 0.0]["forwards"], rows["eval", "pgd", 0.0]["gradients"]) == (60, 0)
    for eps in (0.1, 0.2):
        assert (rows["eval", "pgd", eps]["forwards"], rows["eval", "pgd", eps]["gradients"]) == (260, 200)
        # Half would stand at 0.15: 9/13 at 0.1 and 9/25 at 0.2. An image of 20 pays the first restart where it stands,
        # and a quarter of it where it falls, of those below others seven in ten do; the second where it stands, and a
        # tenth of what fell. Three verdicts, checks.
        stands, falls = 9 / 13, 0.7 * (1 - 9 / 13) + (1 - 9 / 25)
        each = 0.9 * (5 / 500) * ((stands + falls / 4) + (stands + 0.1 * (1 - stands))) / 2 + 4 / 1000
        assert rows["eval", "pgd", eps]["seconds"] == round(20 * each, 1) == 0.2
    assert rows["train", None, None]["seconds"] == 3 * 2.0
    whole = rows["eval", "autoattack", 0.1]
    # 101 gradients; nine targets of 101; nine of 100 and as many checks; 5,000 queries: design of the reference.
    assert whole["gradients"] == 20 * (101 + 909 + 900)
    assert whole["forwards"] == 20 * (3 + 101 + (10 + 909) + (1 + 1800) + 5000)
    assert found["total"]["gradients"] == sum(row["gradients"] for row in found["jobs"])
    assert "5 jobs: " in dry_run.dry_run(url, study, {}, as_json=False)


def test_costs_of_jobs_are_their_multiplications(study: Path):
    from robustq.jobs.submission import study_sources
    from robustq.jobs.submission.expand_study import expand

    plan = expand(study_sources.resolve_file(study, {}))
    # LeNet-5 on one channel of 8 x 8 pixels, by hand: two convolutions of 5 x 5, on 8 x 8 and 4 x 4 pixels, three layers.
    per_pass = (64 * 6 * 25 + 16 * 16 * 6 * 25 + 64 * 120 + 120 * 84 + 84 * 10) / 1e6
    costs = {(p.spec.kind, getattr(getattr(p.spec, "attack", None), "name", None), p.cost) for p in plan}
    by = {(kind, name): cost for kind, name, cost in costs if cost}
    assert by["train", None] == pytest.approx(per_pass * (1200 + 2 * 900))
    assert by["eval", "autoattack"] == pytest.approx(per_pass * 20 * (3 + 101 + 919 + 1801 + 5000 + 2 * 1910))
    assert [p.cost for p in plan if p.spec.kind == "worst"] == [0.0] * sum(p.spec.kind == "worst" for p in plan)


def test_seconds_count_a_gradients_own_pass_once():
    assert Rates(forwards=100.0, gradients=20.0).seconds(Work(forwards=150, gradients=50)) == pytest.approx(1 + 2.5)


def test_calibration_counts_images():
    seen: list[int] = []

    def net(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    rates = calibrate(Replica(net, sizes=(8, 16)), torch.rand(5, 1, 2, 2), seconds=0.05, clock=time.process_time)
    assert set(seen) == {16} and rates.forwards > rates.gradients > 0


def test_an_image_pays_where_it_stands_and_little_where_it_falls():
    assert run_shares(["pgd"], [1.0]) == [1.0]
    assert run_shares(["pgd"], [0.0]) == [0.25]
    assert run_shares(["fgsm"], [0.0]) == [1.0]  # its one step is taken whatever comes of it
    # Four attacks in turn: the first meets all, the others what stands and a tenth of what does not.
    assert run_shares(["apgd-ce", "apgd-t", "fab-t", "square"], [0.5]) == pytest.approx([0.5 + 0.125, 0.55, 0.55, 0.55])
    # Two radii, of which all stand at the smaller and none at the larger: one run there, and a quarter of one.
    assert run_shares(["pgd"], [1.0, 0.0]) == [1.25]


def test_networks_stand_farther_out_of_fewer_pixels_or_when_hardened():
    pgd = TrainSettings(objective="pgd", attack={"eps": 8 / 255, "norm": "Linf"})
    pixels = 3 * 32 * 32
    assert share_standing("Linf", 0.64 / pixels**0.5, pixels, None) == pytest.approx(0.5)
    assert share_standing("Linf", 10 / 255, pixels, pgd) == pytest.approx(0.5)
    assert share_standing("L2", 0.4, pixels, pgd) == pytest.approx(0.5)  # it was hardened in another norm
    assert share_standing("Linf", 8 / 255, pixels, TrainSettings()) < 0.2
