"""Calibrations on a small network: every attack can be tried, and what is tried is what is asked about."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.datasets import load
from robustlib.datasets.lazy_images import LazyImages
from robustlib.inference.throughput import Rates, Work
from robustlib.rng import Draws
from robustlib.settings import TrainSettings
from robustlib.training import OBJECTIVES, trial
from robustq.jobs.running.attacks import recipe_of
from robustq.jobs.specs import AttackSpec, DataRef, DefenceSpec, ModelSpec, TrainSpec
from robustq.jobs.submission import calibration
from robustq.jobs.submission.calibration import Calibration, Calibrations, fewer
from robustq.jobs.submission.validation.parameters import complete_attack

CPU = torch.device("cpu")


class Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def calibrations(threads: int = 1, **clock: Any) -> Calibrations:
    return Calibrations(DataRef(place="digits", sha256=load.fingerprint("digits")), CPU, threads, **clock)


@pytest.fixture(scope="module")
def measured() -> Calibration:
    """LeNet-5 with fresh weights, on 16 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "RATE_SECONDS", 0.02)
        found = calibrations().of(ModelSpec(arch="lenet5"), 16, 10, given=False)
    assert found is not None
    return found


def test_a_model_is_measured_at_its_jobs_batch(measured: Calibration):
    assert len(measured.images) == len(measured.answers) == 16 and measured.labels is None
    assert measured.rates.forwards > 0 and measured.rates.gradients > 0 and not measured.randomised
    assert measured.seconds(Work(3, 2)) == pytest.approx(1 / measured.rates.forwards + 2 / measured.rates.gradients)
    assert (
        measured.correct is None and measured.standing("Linf", 0.1) is None
    )  # of a network that is yet to be trained nothing is known


def test_an_explanation_is_as_quick_as_the_model_as_given(measured: Calibration, monkeypatch: pytest.MonkeyPatch):
    """Its jobs ask the float32 model on one thread, not the copy that attacks search on."""
    asked: list[Any] = []

    def rates_at(oracle: Any, images: torch.Tensor, size: int, **named: Any) -> Rates:
        asked.append((oracle.logits(images), size, torch.get_num_threads()))
        return Rates(7.0, 3.0)

    monkeypatch.setattr(calibration, "rates_at", rates_at)
    assert replace(measured, threads=2).explained_rates == Rates(7.0, 3.0)
    ((logits, size, threads),) = asked
    with torch.no_grad():
        torch.testing.assert_close(logits, measured.ready.model(measured.images), rtol=0, atol=1e-6)
    assert (size, threads) == (16, 1)


def test_an_explanation_is_tried_on_a_few_images(measured: Calibration, monkeypatch: pytest.MonkeyPatch):
    """The first batch is as much longer as the model takes to be ready; long passes are not tried."""
    asked: list[Any] = []
    clock = Clock()

    def stability_batches(model: Any, x: torch.Tensor, y: torch.Tensor, *, batch_size: int, **named: Any):
        asked.append((model, len(x), len(y), batch_size, named))
        for seconds in (9.0, 3.0):
            clock.now += seconds
            yield None

    monkeypatch.setattr(calibration, "stability_batches", stability_batches)
    found = replace(measured, clock=clock, explained={})
    found.__dict__["explained_rates"] = Rates(100.0, 50.0)  # a fiftieth of a second is all that an image takes by these
    arguments = {"method": "saliency", "batch_size": 64}
    ready, each = found.explaining(arguments, Work(2))
    assert found.explaining(arguments, Work(2)) == (ready, each)  # which is known by now
    assert (ready, each) == (6.0, pytest.approx((3.0 + 1.0) / 16))  # a look at the clock is a second
    assert asked == [(found.ready.model, 32, 32, 16, {"method": "saliency", "device": CPU})]
    assert found.explaining(arguments | {"method": "lime"}, Work(5000)) == (0.0, 50.0) and len(asked) == 1


class Centred(nn.Module):
    """Its answer for an image depends on the other images of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x.flatten(1))
        return logits - logits.mean(0)


def test_a_model_that_its_jobs_refuse_to_explain_is_estimated_nevertheless(measured: Calibration):
    found = replace(measured, ready=replace(measured.ready, model=Centred()))
    assert found.explained_rates == measured.rates
    fast = replace(found, rates=Rates(1e6, 1e6), explained={})
    assert fast.explaining({"method": "saliency", "batch_size": 8}, Work(4)) == (0.0, 4e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ATTACKS, *ENSEMBLES])
def test_every_attack_can_be_tried(name: str, measured: Calibration):
    stage = ATTACKS.get(name) or ENSEMBLES[name]
    norm = stage.norms[0] if stage.norms else None
    spec = complete_attack(name, norm, 0.1 if stage.takes_eps else None, 1, {})
    for stage_name, attack in recipe_of(spec, spec.eps, 10).stages:
        assert measured.slower(stage_name, attack) > 0


def test_a_certificate_can_be_tried(measured: Calibration):
    spec = AttackSpec(name="certify", norm="L2", eps=0.1, params={"sigma": 0.25, "n0": 10, "n": 50, "alpha": 0.001})
    ((name, attack),) = recipe_of(spec, 0.1, 10).stages
    assert measured.slower(name, attack, 0.25) > 0


def test_an_attack_is_tried_for_few_steps_and_its_passes_are_counted():
    assert fewer("pgd", {"steps": 40, "eps": 0.1}) == ({"steps": 3}, Work(3, 3))
    assert fewer("pgd", {"steps": 40, "eps": 0.1}, 16) == ({"steps": 16}, Work(16, 16))
    assert fewer("pgd", {"steps": 2, "eps": 0.1}) == ({"steps": 2}, Work(2, 2))
    assert fewer("square", {"queries": 5000}) == ({"queries": 60}, Work(60))
    few, work = fewer("apgd-t", {"steps": 100, "targets": 9})
    assert (few, work) == ({"steps": 3, "targets": 1}, Work(1 + 1 + 4, 4))
    assert fewer("clean", {}) == ({}, Work(0))


def test_an_attack_that_takes_as_long_as_its_passes_is_not_slower(measured: Calibration):
    """On a clock that goes by a second between two looks; passes are said to take as long."""
    rates = Rates(forwards=64.0, gradients=96.0)  # half a second for three gradients of 16 images
    found = replace(measured, slowness={}, clock=Clock(), rates=rates)
    attack = ATTACKS["pgd"].given(norm="Linf", eps=0.1, steps=40)
    assert found.slower("pgd", attack) == pytest.approx(1 / 0.5)
    found.rates = Rates(forwards=16.0, gradients=16.0)  # three seconds: too long to try
    assert found.slower("pgd", attack.given(steps=50)) == 1.0
    assert found.slower("deepfool", ATTACKS["deepfool"].given(norm="L2")) == calibration.UNTRIED["deepfool"]


@pytest.mark.slow
def test_of_a_given_network_pgd_says_how_much_stands(monkeypatch: pytest.MonkeyPatch):
    """Within no radius to speak of all that is right; within one that holds most images as many as PGD leaves."""
    monkeypatch.setattr(calibration, "RATE_SECONDS", 0.02)
    found = calibrations().of(ModelSpec(arch="lenet5"), 64, 10, given=True)
    assert found is not None and found.labels is not None
    found.labels = y = found.answers.clone()
    y[:32] = (y[:32] + 1) % 10  # half of it wrong as it is
    assert found.correct == 0.5 and found.standing("Linf", 1e-6) == 1.0
    x_adv = ATTACKS["pgd"](
        found.oracle, found.images[32:], y[32:], norm="Linf", eps=0.9, draws=Draws(0, torch.arange(32, 64))
    )
    left = int((found.oracle.logits(x_adv).argmax(1) == y[32:]).sum())
    assert 0 < left < 32 and found.standing("Linf", 0.9) == left / 32
    found.stands.clear()
    found.labels = (found.answers + 1) % 10
    assert found.standing("Linf", 0.5) is None  # nothing is right that could fall


def test_a_randomised_model_is_measured_by_its_mean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "RATE_SECONDS", 0.02)
    spec = ModelSpec(arch="lenet5", defence=(DefenceSpec(name="noise", params={"sigma": 0.3}),))
    found = calibrations().of(spec, 8, 4, given=False)
    assert found is not None and found.randomised and getattr(found.oracle, "draws", None) == 4


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_epoch_is_as_long_as_its_steps_and_its_look(objective: str, monkeypatch: pytest.MonkeyPatch):
    """Ten steps of 64 images, of 640 that are trained on, and two looks at 250 images, a second each by this clock."""
    settings = TrainSettings(
        objective=objective, attack={} if objective == "standard" else {"eps": 0.1}, batch_size=64, examples=640,
        validation=0.4, validation_examples=500, validation_steps=1,
    )  # fmt: skip
    train = load.load("digits", "train")
    spec = ModelSpec(arch="lenet5")
    model = calibration.build_model(calibration.unmeasured(spec, train), train, 0)
    monkeypatch.setattr(trial, "MOST_STEPS", 1)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    seconds = trial.epoch_seconds(model, LazyImages(train.images), settings, device=CPU, clock=Clock())
    assert seconds == pytest.approx(10 + 2)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "num_batches" not in name)


def test_trainings_that_differ_by_their_seed_are_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    tried: list[int] = []
    monkeypatch.setattr(Calibrations, "train_a_little", lambda self, spec: tried.append(spec.seed) or 3.0)
    found, data = calibrations(), DataRef(place="digits", sha256="d" * 64)
    for seed in (0, 1, 2):
        spec = TrainSpec(model=ModelSpec(arch="lenet5"), data=data, settings=TrainSettings(), seed=seed)
        assert found.epoch(spec) == 3.0
    assert tried == [0]


def test_few_models_are_kept(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    monkeypatch.setattr(Calibrations, "measure", lambda self, spec, *args: made.append(str(spec.arch)))
    found = calibrations()
    for arch in ("a", "b", "c", "a", "d", "a"):
        found.of(ModelSpec(arch=arch), 10, 10, given=False)
    assert made == ["a", "b", "c", "d", "a"] and len(found.found) == calibration.KEPT
