"""The training loop: its schedules and splits in closed form, resuming bit for bit, and what each objective sees."""

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks.pgd import pgd
from robustlib.models import build
from robustlib.rng import Draws, seeded
from robustlib.settings import TrainSettings
from robustlib.training import OBJECTIVES
from robustlib.training.loop import Training, TrainingDiverged, fit, learning_rates, split, validate

CPU = torch.device("cpu")
QUICK = TrainSettings(
    epochs=3, batch_size=64, examples=200, learning_rate=0.02, validation_steps=2, validation_examples=60
)


def fresh(arch: str = "lenet5", **options: Any) -> nn.Module:
    with seeded(0, "weights", CPU):
        return build(arch=arch, in_channels=1, num_classes=10, image_size=(8, 8), options=options)


def run(model: nn.Module, data: tuple[Tensor, Tensor], settings: TrainSettings, **more: Any) -> Iterator[Training]:
    return fit(model, *data, settings, seed=more.pop("seed", 0), device=CPU, **more)


def weights_of(training: Training) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in training.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def history(training: Training) -> list[dict[str, Any]]:
    return [{key: value for key, value in asdict(row).items() if key != "seconds"} for row in training.history]


def test_learning_rates():
    def rates(schedule: Any, steps: int, **more: Any) -> list[float]:
        return learning_rates(TrainSettings(schedule=schedule, **more), steps)

    assert rates("constant", 3) == [0.1] * 3 and rates("constant", 2, optimizer="adam") == [1e-3] * 2
    assert rates("constant", 2, learning_rate=0.7) == [0.7] * 2
    assert rates("cosine", 4, learning_rate=2.0) == pytest.approx(
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]  # 1 + cos of 0, 45, 90 and 135 degrees
    )
    # Ten steps: thirds up to the peak at the third, then eighths down.
    assert rates("onecycle", 10, learning_rate=1.0) == pytest.approx(
        [1 / 3, 2 / 3, 1, *(k / 8 for k in range(7, 0, -1))]
    )
    for steps in (1, 2, 7, 100, 1001):
        cycle = rates("onecycle", steps, learning_rate=1.0)
        assert len(cycle) == steps and max(cycle) == 1.0 and min(cycle) > 0
        top = cycle.index(1.0)
        assert top == max(1, round(0.3 * steps)) - 1
        assert cycle[: top + 1] == sorted(cycle[: top + 1]) and cycle[top:] == sorted(cycle[top:], reverse=True)


def test_split_is_disjoint_and_follows_the_seed():
    settings = TrainSettings(validation=0.1, validation_examples=1000)
    train, validation = split(1348, settings, 0)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(1348)) and len(validation) == 135
    assert all(torch.equal(a, b) for a, b in zip(split(1348, settings, 0), (train, validation), strict=True))
    assert not torch.equal(split(1348, settings, 1)[1], validation)
    few, look = split(1348, replace(settings, examples=50, validation_examples=20), 0)
    assert torch.equal(few, train[:50]) and torch.equal(look, validation[:20])  # never one of the other side


@pytest.mark.slow
def test_the_loss_falls_and_the_digits_are_learnt(train, test):
    settings = TrainSettings(epochs=6, learning_rate=0.05, validation_steps=1)
    *_, last = run(fresh("convnet3"), train, settings)
    losses = [row.loss for row in last.history]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.05 * losses[0]
    model = last.model.eval()
    assert (model(test[0]).argmax(1) == test[1]).double().mean() > 0.95


def test_the_history_says_what_can_be_computed_again(train):
    """Loss of the first epoch with a single step: that of the fresh network; accuracies: of the validation examples."""
    settings = replace(QUICK, epochs=1, batch_size=200)
    model = fresh()
    x, y = train[0].float() / 255, train[1]
    chosen, validation = split(len(x), settings, 0)
    expected = F.cross_entropy(model(x[chosen]), y[chosen]).item()
    (training,) = run(model, train, settings)
    (row,) = training.history
    assert row.loss == pytest.approx(expected, rel=1e-5)
    assert (row.epoch, row.learning_rate) == (0, 0.02)
    model.eval()
    x, y = x[validation], y[validation]
    x_adv = pgd(model, x, y, eps=8 / 255, steps=2, draws=Draws(0, torch.arange(60)))
    clean, attacked = model(x).argmax(1) == y, model(x_adv).argmax(1) == y
    assert row.clean_accuracy == pytest.approx(clean.double().mean().item())
    assert row.attacked_accuracy == pytest.approx((clean & attacked).double().mean().item())


def test_one_step_of_sgd_in_closed_form(train):
    """Nesterov's first step from rest is (1 + momentum) times the gradient, weight decay included."""
    settings = replace(QUICK, epochs=1, batch_size=200, momentum=0.9, weight_decay=0.01)
    model = fresh()
    x, y = train[0].float() / 255, train[1]
    chosen, _ = split(len(x), settings, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = F.cross_entropy(model(x[chosen]), y[chosen])
    gradients = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    list(run(model, train, settings))
    for name, p in model.named_parameters():
        expected = before[name] - 0.02 * 1.9 * (gradients[name] + 0.01 * before[name])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch, options, settings",
    [
        ("lenet5", {}, replace(QUICK, crop=1, flip=True)),
        ("convnet3", {"dropout": 0.3}, replace(QUICK, optimizer="adam", learning_rate=1e-3, keep="best")),
        ("convnet3", {"dropout": 0.3}, replace(QUICK, schedule="cosine", crop=1, keep="best")),
        ("lenet5", {}, replace(QUICK, objective="pgd", attack={"eps": 0.05, "steps": 2}, optimizer="adam")),
    ],
    ids=["sgd augmented", "adam dropout", "sgd dropout augmented", "adam pgd"],
)
@pytest.mark.parametrize("stop", [1, 2])
def test_resuming_gives_the_same_bits(arch: str, options: dict, settings: TrainSettings, stop: int, train):
    *_, straight = run(fresh(arch, **options), train, settings)
    first = run(fresh(arch, **options), train, settings)
    stopped = [next(first) for _ in range(stop)][-1]
    file = io.BytesIO()
    torch.save(stopped.state, file)
    file.seek(0)
    with seeded(1, "elsewhere", CPU):  # another process: other weights to start with, another state of the generators
        other = build(arch=arch, in_channels=1, num_classes=10, image_size=(8, 8), options=options)
        rest = list(run(other, train, settings, state=torch.load(file, weights_only=True)))
    assert len(rest) == 3 - stop
    assert same(weights_of(rest[-1]), weights_of(straight)) and history(rest[-1]) == history(straight)
    assert rest[-1].best == straight.best and same(rest[-1].weights, straight.weights)


@pytest.mark.slow
def test_the_seed_and_nothing_else_decides(train):
    with seeded(5, "elsewhere", CPU):
        *_, a = run(fresh("convnet3", dropout=0.2), train, QUICK)
    before = torch.get_rng_state()
    *_, b = run(fresh("convnet3", dropout=0.2), train, QUICK)
    *_, c = run(fresh("convnet3", dropout=0.2), train, QUICK, seed=1)
    assert same(weights_of(a), weights_of(b)) and not same(weights_of(a), weights_of(c))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("objective, key", [("standard", "clean_accuracy"), ("fgsm", "attacked_accuracy")])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_which_weights_are_kept(keep: Any, objective: str, key: str, train):
    """A high constant rate makes the accuracy go up and down, so that the best epoch is not simply the last."""
    settings = replace(QUICK, epochs=6, keep=keep, objective=objective, schedule="constant", learning_rate=0.15)
    runs = [(weights_of(t), copy.deepcopy(t.weights), t) for t in run(fresh("convnet3"), train, settings)]
    epochs, kept, trainings = zip(*runs, strict=True)
    merits = [getattr(row, key) for row in trainings[-1].history]
    for n in range(6):
        expected = merits.index(max(merits[: n + 1])) if keep == "best" else n  # the first of equals
        assert same(kept[n], epochs[expected])
    assert trainings[-1].best == (merits.index(max(merits)) if keep == "best" else 5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_that_diverges_stops(optimizer: Any, train):
    settings = replace(QUICK, optimizer=optimizer, learning_rate=1e30, schedule="constant")
    with pytest.raises(
        TrainingDiverged, match=r"^the training loss became (nan|inf) at a learning rate of up to 1e\+30"
    ):
        list(run(fresh(), train, settings))
    assert issubclass(TrainingDiverged, ValueError)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, attack",
    [
        ("standard", {}),
        ("fgsm", {"eps": 0.1}),
        ("fgsm", {"eps": 0.1, "random_start": True}),
        ("pgd", {"eps": 0.1, "steps": 3}),
        ("pgd", {"eps": 0.5, "steps": 3, "norm": "L2", "loss": "margin"}),
        ("deepfool", {"steps": 3}),
        ("deepfool", {"steps": 3, "eps": 5.0, "norm": "L2"}),
    ],
)
def test_objectives(objective: str, attack: dict, train):
    """Each is the cross-entropy, in training mode, of images attacked in eval mode; and trains."""
    x, y, draws = train[0][:64].float() / 255, train[1][:64], Draws(3, torch.arange(64))
    model = fresh("convnet3", dropout=0.0)
    model.train()
    twin = copy.deepcopy(model)
    x_adv = x
    if objective != "standard":
        kind = OBJECTIVES[objective].keywords["attack"]  # pyright: ignore[reportFunctionMemberAccess]
        x_adv = kind(copy.deepcopy(model).eval(), x, y, draws=draws, **attack)
        assert not torch.equal(x_adv, x)
    expected = F.cross_entropy(twin(x_adv), y)
    loss = OBJECTIVES[objective](model, x, y, draws=draws, **attack)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and model.training
    # One pass in training mode, however many the attack took: BatchNorm's statistics moved once.
    assert same(model.state_dict(), twin.state_dict())
    before = weights_of(Training(model, [], {}, 0))
    settings = replace(QUICK, epochs=1, examples=64, objective=objective, attack=attack)
    (training,) = run(model, train, settings)
    assert math.isfinite(training.history[0].loss) and not same(weights_of(training), before)


def test_batches_are_of_near_equal_size(train, monkeypatch: pytest.MonkeyPatch):
    """A last batch of a single image would break BatchNorm: 65 examples in batches of 64 are 33 and 32."""
    seen: list[Tensor] = []

    def spy(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws, search: object) -> Tensor:
        seen.append(draws.index)
        return F.cross_entropy(model(x), y)

    monkeypatch.setitem(OBJECTIVES, "standard", spy)
    list(run(fresh("convnet3"), train, replace(QUICK, epochs=2, examples=65)))
    assert [len(index) for index in seen] == [33, 32, 33, 32]
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    chosen, _ = split(len(train[0]), replace(QUICK, examples=65), 0)
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(chosen.tolist())
    assert not torch.equal(first, second)  # a fresh order every epoch


def test_validation_does_not_touch_the_model(train, net):
    model = copy.deepcopy(net)
    model.train()
    before = weights_of(Training(model, [], {}, 0))
    settings = replace(QUICK, validation_eps=0.0)
    clean, attacked = validate(model, train[0][:300], train[1][:300], settings, 0, CPU)
    right = (net(train[0][:300].float() / 255).argmax(1) == train[1][:300]).double().mean().item()
    assert clean == attacked == pytest.approx(right)  # at eps 0 the attack changes nothing
    assert same(weights_of(Training(model, [], {}, 0)), before) and all(layer.training for layer in model.modules())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"epochs": 0}, "expected epochs of at least 1, got 0"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"examples": 1}, "expected examples of at least 2, got 1"),
        ({"validation": 1.0}, "expected validation between 0 and 1, got 1.0"),
        ({"learning_rate": 0.0}, "expected learning_rate above 0, got 0.0"),
        ({"learning_rate": math.nan}, "expected learning_rate above 0, got nan"),
        ({"crop": -1}, "expected crop of at least 0, got -1"),
        ({"validation_eps": 8.0}, "expected validation_eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict, message: str):
    with pytest.raises(ValueError) as error:
        TrainSettings(**wrong)
    assert str(error.value).startswith(message)
