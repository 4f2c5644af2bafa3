"""Batches evaluated on linear models, where which example falls and at what distance is known beforehand."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS
from robustlib.evaluation.batches import evaluate_batches
from robustlib.metrics import summarise, wilson
from robustlib.outcome import Batch, Outcome, join
from robustlib.rng import Draws

NORMS: list[Norm] = ["Linf", "L2"]
N = 192
WRONG = torch.arange(N) % 8 == 0  # every eighth label is wrong from the start


class Rows(nn.Module):
    """Two classes, linear, each image summed by itself: no bit of a result depends on who shares the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 36, generator=torch.Generator().manual_seed(0)))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return ((self.dropout(x.flatten(1)) - 0.5)[:, None] * self.weight).sum(2)


@pytest.fixture(scope="module")
def model() -> Rows:
    return Rows().eval()


@pytest.fixture(scope="module")
def distance() -> Tensor:
    """L2 distances to the boundary: shuffled, and none between 0.19 and 0.21."""
    steps = torch.cat([torch.linspace(0.05, 0.19, N // 2), torch.linspace(0.21, 0.3, N // 2)])
    return steps[torch.randperm(N, generator=torch.Generator().manual_seed(1))]


@pytest.fixture(scope="module")
def x(model: Rows, distance: Tensor) -> Tensor:
    normal = (model.weight[1] - model.weight[0]).detach()
    side = torch.where(torch.arange(N) % 2 == 1, 1.0, -1.0)
    return (0.5 + (side * distance)[:, None] * normal / normal.norm()).reshape(N, 1, 6, 6)


@pytest.fixture(scope="module")
def y() -> Tensor:
    truth = torch.arange(N) % 2
    return torch.where(WRONG, 1 - truth, truth)


def radius(value: float, model: Rows, norm: Norm) -> float:
    """An L2 distance to the boundary as one in `norm`."""
    normal = (model.weight[1] - model.weight[0]).detach()
    return value if norm == "L2" else (value * normal.norm() / normal.abs().sum()).item()


def attack(name: str, norm: Norm, **options):
    return name, partial(ATTACKS[name], norm=norm, **options)


def outcome(*args, **options) -> Outcome:
    return join([batch.outcome for batch in evaluate_batches(*args, **options)])


@pytest.mark.parametrize("norm", NORMS)
def test_what_falls_and_who_broke_it(norm: Norm, model: Rows, distance: Tensor, x: Tensor, y: Tensor):
    """FGSM with a quarter of the radius breaks the nearest, PGD with all of it those within, nothing the others."""
    eps = radius(0.2, model, norm)
    attacks = [
        attack("fgsm", norm, eps=eps / 2),
        attack("pgd", norm, eps=eps, random_start=False, stop_at_success=False),
    ]
    found = outcome(model, x, y, attacks, norm=norm, eps=eps, batch_size=50)
    near, nearer = (distance < 0.2).numpy(), (distance < 0.1).numpy()
    assert np.array_equal(found.index, np.arange(N)) and np.array_equal(found.label, y.numpy())
    wrong = WRONG.numpy()
    assert np.array_equal(found.clean_prediction, np.arange(N) % 2)
    assert np.array_equal(found.clean_correct, ~wrong)
    assert np.array_equal(found.success, wrong | near)
    assert np.array_equal(found.adversarial_correct, ~found.success)
    assert np.array_equal(found.adversarial_survived, ~found.success)
    assert np.array_equal(found.adversarial_prediction != found.label, found.success)
    expected = np.where(wrong, "clean", np.where(nearer, "fgsm", np.where(near, "pgd", "")))
    assert np.array_equal(found.broken_by, expected)
    # Each attack goes to the edge of its ball; what is wrong already needs nothing; what stands has no distance.
    used = np.where(wrong, 0.0, np.where(nearer, eps / 2, np.where(near, eps, np.nan)))
    np.testing.assert_allclose(found.distance, used, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_deepfool_without_a_budget_measures_the_distance(
    norm: Norm, model: Rows, distance: Tensor, x: Tensor, y: Tensor
):
    found = outcome(model, x, y, [attack("deepfool", norm)], norm=norm)
    assert found.success.all()
    right = ~WRONG.numpy()
    exact = np.array([radius(d, model, norm) for d in distance.tolist()])
    np.testing.assert_allclose(found.distance[right], 1.02 * (exact[right] + 1e-4), rtol=1e-3)
    facts = summarise(vars(found))
    assert facts["robust_accuracy"] == 0 and facts["clean_accuracy"] == pytest.approx(7 / 8)
    assert facts["distance_median"] == pytest.approx(np.median(found.distance[right]))


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_batch_size_changes_nothing(norm: Norm, model: Rows, x: Tensor, y: Tensor):
    eps = radius(0.15, model, norm)
    attacks = [attack("pgd", norm, eps=eps, steps=2), attack("fgsm", norm, eps=eps, random_start=True)] * 2
    runs = [list(evaluate_batches(model, x, y, attacks, norm=norm, eps=eps, batch_size=size)) for size in (64, 128, N)]
    assert [[len(batch.x_adv) for batch in run] for run in runs] == [[64, 64, 64], [128, 64], [N]]
    joined = [join([batch.outcome for batch in run]) for run in runs]
    images = [torch.cat([batch.x_adv for batch in run]) for run in runs]
    assert 0 < joined[0].success.mean() < 1
    for other, x_adv in zip(joined[1:], images[1:], strict=True):
        assert torch.equal(x_adv, images[0])
        for name, values in vars(joined[0]).items():
            assert np.array_equal(getattr(other, name), values, equal_nan=name == "distance"), name


def test_what_attacks_keep_is_halved_where_memory_does_not_hold_it(model: Rows, x: Tensor, y: Tensor):
    """An attack is asked for fewer images at once, and the outcome is that of all at once."""
    eps, seen = radius(0.15, model, "L2"), list[int]()
    name, pgd = attack("pgd", "L2", eps=eps, steps=2)

    def hungry(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        seen.append(len(x))
        if len(x) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pgd(model, x, y, draws=draws)

    kind = {"norm": "L2", "eps": eps, "batch_size": N // 2}
    found, expected = (
        list(evaluate_batches(model, x, y, [(name, which)], **kind))  # pyright: ignore[reportArgumentType]
        for which in (hungry, pgd)
    )
    assert [len(batch.x_adv) for batch in found] == [N // 2, N // 2]
    assert max(seen[:4]) > 40 >= max(seen[4:])  # the second batch begins with what the first has shown
    for batch, right in zip(found, expected, strict=True):
        assert torch.equal(batch.x_adv, right.x_adv) and np.array_equal(batch.stage, right.stage)
        for field, values in vars(right.outcome).items():
            assert np.array_equal(getattr(batch.outcome, field), values, equal_nan=field == "distance"), field


def test_without_an_attack_images_are_right_or_wrong_as_they_are(model: Rows, x: Tensor, y: Tensor):
    found = outcome(model, x, y, [], num_classes=2)
    assert np.array_equal(found.success, WRONG.numpy()) and set(found.broken_by[WRONG.numpy()]) == {"clean"}


def test_another_seed_gives_other_images(model: Rows, x: Tensor, y: Tensor):
    def run(seed: int) -> Tensor:
        (batch,) = evaluate_batches(model, x, y, [attack("pgd", "L2", eps=0.1, steps=1)], norm="L2", eps=0.1, seed=seed)
        return batch.x_adv

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_the_images_given_back_are_those_that_were_judged(net: nn.Module, test):
    x, y = test
    batches: list[Batch] = list(evaluate_batches(net, x, y, [attack("pgd", "Linf", eps=0.1)], eps=0.1, batch_size=128))
    x_adv = torch.cat([batch.x_adv for batch in batches])
    found = join([batch.outcome for batch in batches])
    assert x_adv.dtype == torch.float32 and x_adv.device.type == "cpu" and x_adv.shape == x.shape
    again = torch.cat([net(part).argmax(1) for part in x_adv.split(128)])
    assert np.array_equal(found.adversarial_prediction, again.numpy())
    # What stands is given back as it came.
    stands = torch.from_numpy(~found.success)
    assert stands.any() and torch.equal(x_adv[stands], x[stands])


def test_bytes_are_divided_by_255(net: nn.Module, digits):
    x, y = torch.from_numpy(digits["test"].x), torch.from_numpy(digits["test"].y)
    a = outcome(net, x, y, [attack("fgsm", "Linf", eps=0.1)], eps=0.1)
    b = outcome(net, x.float() / 255, y, [attack("fgsm", "Linf", eps=0.1)], eps=0.1)
    assert np.array_equal(a.success, b.success) and np.array_equal(a.clean_prediction, b.clean_prediction)


def test_training_flags_come_back_and_dropout_is_off_meanwhile(model: Rows, x: Tensor, y: Tensor):
    noisy = copy.deepcopy(model).train()
    noisy.dropout.eval()
    expected = outcome(model, x, y, [attack("pgd", "L2", eps=0.2)], norm="L2", eps=0.2)
    noisy.dropout.train()
    noisy.training = False  # a mixture, which must come back as it was
    found = outcome(noisy, x, y, [attack("pgd", "L2", eps=0.2)], norm="L2", eps=0.2)
    assert np.array_equal(found.success, expected.success)
    assert noisy.dropout.training and not noisy.training


@pytest.mark.parametrize("norm, step", [("Linf", 0.11), ("L2", 0.02)])
def test_an_attack_that_leaves_its_ball_is_an_error(norm: Norm, step: float, model: Rows, x: Tensor, y: Tensor):
    """0.02 in each of 36 pixels is 0.12 in L2."""

    def push(search: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        normal = (model.weight[1] - model.weight[0]).detach().sign().reshape(1, 1, 6, 6)
        return x + step * normal * (1 - 2 * y)[:, None, None, None]

    list(evaluate_batches(model, x, y, [("push", push)], norm=norm, eps=0.13))  # inside this one
    with pytest.raises(
        RuntimeError, match=rf"^one of the attacks \['push'\] left its {norm} ball of radius 0\.1, or the"
    ):
        list(evaluate_batches(model, x, y, [("push", push)], norm=norm, eps=0.1))


def test_an_attack_that_gives_nan_is_an_error(model: Rows, x: Tensor, y: Tensor):
    with pytest.raises(RuntimeError, match=r"^attack 1 of 1 gives images that hold NaN$"):
        list(evaluate_batches(model, x, y, [("nan", lambda model, x, y, *, draws: x * math.nan)], norm="Linf", eps=0.1))


@pytest.mark.parametrize("where", ["clean", "attacked"])
def test_nan_logits_are_an_error_and_no_class(where: str, model: Rows, x: Tensor, y: Tensor):
    """NaN counts as the largest of numbers: images of class 0 would be right, and stand."""

    class Broken(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            rows = (z > 0.9).flatten(1).any(1)
            return torch.where(rows[:, None], math.nan, model(z))

    x = x.clamp(0, 0.5)
    if where == "clean":
        x = torch.cat([x, x])
        x[-1, 0, 0, 0] = 1.0  # beyond the images that a model is looked at with
        y = torch.cat([y, y])
    bright = ("bright", lambda model, x, y, *, draws: torch.ones_like(x))
    with pytest.raises(ValueError, match=r"^the model gives NaN logits for \d+ of \d+ images$"):
        list(evaluate_batches(Broken(), x, y, [bright], norm="Linf", eps=1.0))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "fab", "square", "deepfool", "fmn"])
def test_a_model_that_answers_in_another_type(name: str, dtype: torch.dtype, model: Rows, x: Tensor, y: Tensor):
    """It breaks the images that it breaks in float32, but for those that its own rounding decides."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, z: Tensor) -> Tensor:
            return self.inner(z).to(dtype)

    norm: Norm = "L2" if name in ("deepfool", "fmn") else "Linf"
    expected = outcome(model, x, y, [attack(name, norm, eps=0.1)], norm=norm, eps=0.1)
    found = outcome(Other(), x, y, [attack(name, norm, eps=0.1)], norm=norm, eps=0.1)
    assert (found.success != expected.success).mean() <= 0.05
    assert expected.success.mean() > 0


def test_an_attack_that_leaves_the_box_is_an_error(model: Rows, x: Tensor, y: Tensor):
    with pytest.raises(
        RuntimeError, match=r"^one of the attacks \['far'\] left its Linf ball of radius None, or the box$"
    ):
        list(evaluate_batches(model, x, y, [("far", lambda model, x, y, *, draws: 3 - 5 * x)]))


@pytest.mark.parametrize("shift, low, high", [(0.5, "0.5", "1.5"), (-0.25, "-0.25", "0.75")])
def test_images_outside_the_box(shift: float, low: str, high: str, model: Rows):
    x = torch.linspace(0, 1, 72).reshape(2, 1, 6, 6) + shift
    with pytest.raises(ValueError) as error:
        list(evaluate_batches(model, x, torch.zeros(2, dtype=torch.long), []))
    assert str(error.value) == (
        f"expected images in [0, 1], got values from {low} to {high}: leave normalisation to the model's first layer"
    )


class Gives(nn.Module):
    def __init__(self, logits: object):
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> object:
        return self.logits


@pytest.mark.parametrize(
    "logits, classes, message",
    [
        (
            torch.zeros(4, 3),
            None,
            "the model gives 3 classes, but the dataset has 6: expected a logit for every label",
        ),
        (torch.zeros(4, 6), 7, "the model gives 6 classes, but the dataset has 7: expected a logit for every label"),
        (torch.zeros(4), None, "expected logits of shape (4, classes) from the model, got (4,)"),
        (torch.zeros(3, 6), None, "expected logits of shape (4, classes) from the model, got (3, 6)"),
        (
            (torch.zeros(4, 6),),
            None,
            "expected logits of shape (4, classes) from the model, got tuple: let forward return the logits alone",
        ),
        (
            torch.full((4, 6), torch.nan),
            None,
            "the model gives NaN or infinite logits for clean images: its weights are broken",
        ),
    ],
)
def test_models_that_do_not_fit(logits: object, classes: int | None, message: str):
    with pytest.raises(ValueError) as error:
        list(
            evaluate_batches(
                Gives(logits), torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 5, 2]), [], num_classes=classes
            )
        )
    assert str(error.value) == message


def test_summary_in_closed_form():
    found = Outcome(
        index=np.arange(5),
        label=np.zeros(5, int),
        clean_prediction=np.array([0, 0, 0, 0, 1]),
        adversarial_prediction=np.array([0, 1, 1, 1, 1]),
        success=np.array([False, True, True, True, True]),
        distance=np.array([np.nan, 0.1, 0.2, 0.6, 0.0], np.float32),
        broken_by=np.array(["", "fgsm", "pgd", "pgd", "clean"]),
        clean_correct=np.array([1, 1, 1, 1, 0], np.float32),
        adversarial_correct=np.array([1, 0, 0, 0, 0], np.float32),
        queries=np.full(5, -1, np.int32),
        adversarial_survived=np.array([True, False, False, False, False]),
    )
    assert summarise(vars(found)) == pytest.approx(
        {
            "n": 5,
            "clean_accuracy": 0.8,
            "clean_accuracy_low": wilson(4, 5)[0],
            "clean_accuracy_high": wilson(4, 5)[1],
            "robust_accuracy": 0.2,
            "robust_accuracy_low": wilson(1, 5)[0],
            "robust_accuracy_high": wilson(1, 5)[1],
            "any_draw_accuracy": 0.2,
            "distance_median": 0.2,
            "distance_median_low": None,
            "distance_median_high": None,
            "queries": None,
            "queries_most": None,
            "distance_mean": 0.3,
        }
    )
    none = Outcome(**{name: values[[0, 4]] for name, values in vars(found).items()})
    facts = summarise(vars(none))
    assert facts["distance_median"] is None and facts["distance_mean"] is None and facts["robust_accuracy"] == 0.5
