"""What an evaluation's own stages and radii say against it is said in its own row, once, over all its examples."""

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from robustlib.checks.whole_evaluation import check_whole
from robustq.jobs.results.audits import checks_of_job
from robustq.jobs.results.columns import Check
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, result
from tests.helpers.drain_queue import worked_off

MODEL = """
import torch
from sklearn.datasets import load_digits

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        images, classes = load_digits(return_X_y=True)
        x, y = torch.tensor(images).float() / 16, torch.tensor(classes)
        torch.manual_seed(0)
        torch.nn.init.normal_(self.layer.weight, std=0.1)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(self.layer(x), y).backward()
            optimizer.step()

    def forward(self, x):
        return self.layer(x.flatten(1))

class Lies(Linear):
    def forward(self, x):
        z = super().forward(x)
        w = 0.05 * (40 * z.flip(1)).sin()
        return (8 * z).round() / 8 + w - w.detach()

class Noise(Linear):
    def forward(self, x):
        return super().forward(x) + 3 * torch.randn(10)
"""
pytestmark = pytest.mark.timeout(300)


def run(tmp_path: Path, name: str, model: str, attacks: list[dict], **study) -> Store:
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.py").write_text(MODEL)
    entry = {"file": f"{tmp_path / name}.py:{model}"}
    return worked_off(tmp_path / name / "store", {"name": "s", "models": {"m": entry}, "attacks": attacks} | study)


def rows_of(store: Store) -> dict[tuple[str, float | None], tuple[str, list[Check], dict]]:
    """By attack and radius: the verdict, the checks and the outcomes of each row but shards."""
    with store.begin() as db:
        found = db.execute(
            sa.select(job.c.id, job.c.attack, job.c.eps, result.c.verdict)
            .join(result, result.c.job_id == job.c.id)
            .where(job.c.kind != "shard")
        ).all()
        rows = {
            (row.attack, row.eps): (
                row.verdict,
                checks_of_job(db, row.id),
                example_outcomes.to_columns(examples_of(db, row.id)),
            )
            for row in found
        }
    store.engine.dispose()
    return rows


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check["name"] == name]
    return found


AUTOATTACK = {"name": "autoattack", "eps": 0.08}


@pytest.mark.slow
def test_what_square_alone_broke_fails_an_ensemble_by_itself(tmp_path: Path):
    """Logits that are rounded going forward and a lie going back, which every check of the model alone lets pass."""
    weak = {"name": "pgd", "eps": 0.08, "steps": 1, "random_start": False}
    rows = rows_of(run(tmp_path, "lies", "Lies", [AUTOATTACK, weak], examples=40))
    verdict, checks, columns = rows["autoattack", 0.08]
    found = named(checks, "square-beats-gradients")
    alone = columns["broken_by"] == "square"
    assert alone.sum() > 2 and found["value"] == alone.mean()
    assert found["examples"] == columns["index"][alone].tolist()
    assert (found["verdict"], verdict) == ("fail", "fail")
    assert {check["name"] for check in checks if check["verdict"] == "fail"} == {"square-beats-gradients"}
    # A worst case says it of all its attacks, of each image once: here of those that PGD did not break either.
    verdict, checks, _ = rows["worst-case", 0.08]
    alone &= ~rows["pgd", 0.08][2]["success"]
    assert (verdict, named(checks, "square-beats-gradients")["value"]) == ("fail", alone.mean())


@pytest.mark.slow
def test_a_sound_model_keeps_its_verdict_under_an_ensemble(tmp_path: Path):
    verdict, checks, _ = rows_of(run(tmp_path, "sound", "Linear", [AUTOATTACK], examples=40))["autoattack", 0.08]
    assert named(checks, "square-beats-gradients")["value"] == 0 and verdict != "fail"


@pytest.mark.slow
def test_of_an_evaluation_in_shards_it_is_said_of_the_whole(tmp_path: Path):
    """The second shard is of ten images: its share would be another."""
    how = {"examples": 110, "shards": 2}
    _, checks, columns = rows_of(run(tmp_path, "parts", "Lies", [AUTOATTACK], **how))["autoattack", 0.08]
    share = (columns["broken_by"] == "square").mean()
    assert named(checks, "square-beats-gradients")["value"] == share > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_radii_of_a_randomised_model_are_searched_one_by_one(tmp_path: Path, shards: int):
    attack = {"name": "pgd", "steps": 2, "eps": [0.02, 0.1]}
    how = {"examples": 110, "draws": 10, "eot_draws": 2, "shards": shards}
    rows = rows_of(run(tmp_path, "noise", "Noise", [attack], **how))
    low, high = (rows["pgd", eps][2]["adversarial_correct"].mean(dtype=np.float64) for eps in (0.02, 0.1))
    assert high < low
    for eps in (0.02, 0.1):
        found = named(rows["pgd", eps][1], "accuracy-rises-with-eps")
        assert (found["value"], found["note"]) == (0, f"{low:.3f} at 0.02, {high:.3f} at 0.1")


def test_a_rise_is_told_at_the_radius_that_is_overstated():
    columns = {"index": np.arange(100), "broken_by": np.full(100, "")}
    extra = {"radii": [[0.1, 0.5], [0.2, 0.6], [0.3, 0.501]]}
    found = {eps: check_whole(columns, extra, eps, 100)[0] for eps in (0.1, 0.2, 0.3)}
    # Three standard errors of the difference of two shares of 100 images in 100 draws are taken off.
    expected = 0.1 - 3 * ((0.25 + 0.24) / 10_000) ** 0.5
    assert found[0.2].value == pytest.approx(expected) and found[0.2].verdict == "fail"
    assert [found[eps].value for eps in (0.1, 0.3)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Linear", "Noise"])
def test_an_idle_attack_fails_and_one_without_limit_is_set_beside_chance(tmp_path: Path, model: str):
    attacks = [
        {"name": "fmn", "norm": "L2", "eps": 0.5, "step_size": 1e-30, "steps": 5},
        {"name": "deepfool", "norm": "L2"},
        {"name": "clean"},
    ]
    rows = rows_of(run(tmp_path, "idle", model, attacks, examples=40, draws=5, eot_draws=2))
    verdict, checks, columns = rows["fmn", 0.5]
    assert (verdict, named(checks, "unmoved")["verdict"]) == ("fail", "fail")
    assert columns["adversarial_correct"].mean() > 0.7
    verdict, checks, _ = rows["deepfool", None]
    assert verdict != "fail" and named(checks, "unmoved")["verdict"] == "pass"
    names = {check["name"] for check in checks}
    assert ("noise-nearer" in names, "noise" in names) == (model == "Linear", False)
    assert "unmoved" not in {check["name"] for check in rows["clean", None][1]}
