"""A mean and a standard deviation in front of any model, and the check that notices where they are missing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustlib.checks.evaluation_checks import look_at_outcome
from robustlib.checks.normalisation import normalisation
from robustlib.checks.thresholds import CheckResult, overall
from robustlib.evaluation.batches import evaluate_batches, make_ready
from robustlib.models import build
from robustlib.models.black_box import BlackBoxModel
from robustlib.models.layers import Normalize
from robustlib.normalisations import NORMALISATIONS, by_channel, check_statistics
from robustlib.outcome import Outcome

FACTS = {"in_channels": 3, "num_classes": 10, "image_size": (8, 8)}
CODE = """
import torch
def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
def answers():
    inner = module()
    return lambda x: inner(x).detach().numpy()
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "m.py").write_text(CODE)
    return str(tmp_path / "m.py")


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["module", "answers"])
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_users_own_model_sees_images_normalised(code: str, factory: str, name: str):
    """Closed form: the network's own layers, called with (x - mean) / std."""
    mean, std = NORMALISATIONS[name]
    x = torch.rand(5, 3, 8, 8)
    model = build(file=f"{code}:{factory}", normalize=(mean, std), **FACTS)
    bare = build(file=f"{code}:module", **FACTS)
    channels = [(x[:, c] - mean[c]) / std[c] for c in range(3)]
    torch.testing.assert_close(model(x), bare(torch.stack(channels, 1)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(x), build(file=f"{code}:{factory}", **FACTS)(x))


def test_weights_load_with_the_first_layer_and_without(code: str, tmp_path: Path):
    bare = {"1.weight": torch.rand(10, 192), "1.bias": torch.rand(10)}
    whole = {f"net.{k}": v for k, v in bare.items()} | {
        "normalize.mean": torch.rand(3, 1, 1),
        "normalize.std": torch.rand(3, 1, 1) + 1,
    }
    normalize = ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    for given, mean in ((bare, torch.tensor(normalize[0])), (whole, whole["normalize.mean"].flatten())):
        torch.save(given, tmp_path / "w.pt")
        state = build(file=f"{code}:module", weights=tmp_path / "w.pt", normalize=normalize, **FACTS).state_dict()
        assert torch.equal(state["net.1.weight"], bare["1.weight"])
        assert torch.equal(state["normalize.mean"].flatten(), mean)


def test_the_numbers_are_the_published_ones():
    """torchvision's own transform of its ImageNet weights; of the others what their first channel is on 0 to 255."""
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(crop_size=224)
    assert NORMALISATIONS["imagenet"] == (tuple(preset.mean), tuple(preset.std))
    assert [round(255 * NORMALISATIONS[name][0][0], 1) for name in ("cifar10", "cifar100")] == [125.3, 129.3]


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5], [float("nan")]), ([float("inf")], [1.0]), ([123.0], [58.0]), ([], [])]
)  # fmt: skip
def test_what_is_no_mean_or_standard_deviation(mean: list[float], std: list[float], code: str):
    with pytest.raises(ValueError, match=r"^expected "):
        check_statistics(mean, std)
    with pytest.raises(ValueError, match=r"^expected "):
        build(file=f"{code}:module", normalize=(mean, std), **FACTS)


def test_one_number_a_channel_or_one_for_all():
    assert by_channel([0.5], [0.1, 0.2, 0.3], 3) == ([0.5] * 3, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"expected normalize to have 3 values of mean, .* got 2"):
        by_channel([0.5, 0.5], [1.0, 1.0], 3)


Y = torch.arange(10).repeat(30)
MEAN, STD = (torch.tensor(part) for part in NORMALISATIONS["cifar10"])
# Ten colours as a network sees them behind CIFAR-10's normalisation. As they are, all lie nearest to the first.
SEEN = torch.tensor(
    [[0.4] * 3, *([a, b, c] for a in (-1.6, 1.6) for b in (-1.6, 1.6) for c in (-1.6, 1.6)), [1.9, 0, 0]]
)
COLOURS = SEEN * STD + MEAN
X = COLOURS[Y][:, :, None, None].expand(-1, -1, 4, 4).contiguous()


class Nearest(nn.Module):
    """The nearest of some colours to an image's mean one."""

    centres: Tensor

    def __init__(self, centres: Tensor):
        super().__init__()
        self.register_buffer("centres", centres)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.mean((2, 3))[:, None] - self.centres).square().sum(2)


def clean(model: nn.Module) -> Outcome:
    (batch,) = evaluate_batches(model, X, Y, [("clean", lambda model, x, y, *, draws: x)], eps=0.0, batch_size=1000)
    return batch.outcome


def found(model: nn.Module) -> CheckResult:
    outcome = clean(model)
    ready = make_ready(model, X, 10, torch.device("cpu"))
    assert ready.replicas is not None  # looked at as evaluations do, by what judges
    checks = look_at_outcome(ready.replicas.exact, X, Y, X, outcome, norm=None, eps=0.0, seed=0)
    return next(check for check in checks if check.name == "normalisation")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Nearest(SEEN), "`normalize: cifar10` (or --normalize cifar10)"),
        (nn.Sequential(Normalize([0.5] * 3, [4.0] * 3), Nearest(SEEN)), "`normalize: cifar10` (or --normalize cifar10)"),
        (nn.Sequential(Normalize([0.5] * 3, [99.0] * 3), Nearest(COLOURS)), "no `normalize` (or without --normalize, --mean and --std)"),
    ],
    ids=["missing", "another in its place", "one too many"],
)  # fmt: skip
def test_the_normalisation_that_a_model_was_trained_with_is_named(model: nn.Module, words: str):
    assert clean(model).clean_correct.mean() == pytest.approx(0.1)  # every image is taken for one class
    check = found(model)
    assert (check.verdict, check.value) == ("warn", pytest.approx(0.9, abs=0.02))
    assert f", but 1.000 with {words}, " in check.note and check.note.endswith("on 128 images")
    assert overall([check]) == "warn"


def test_an_accurate_model_costs_no_pass_and_an_untrained_one_no_warning():
    calls = []
    model = Nearest(COLOURS)
    model.register_forward_hook(lambda *_: calls.append(1))
    outcome = clean(model)
    calls.clear()
    assert normalisation(model, X, Y, outcome).value is None and not calls
    torch.manual_seed(0)
    check = found(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)))
    assert (check.verdict, check.note) == ("pass", "no usual one gives much more")


def test_a_model_that_takes_no_other_images_is_not_asked_on():
    def strict(x: Tensor) -> Tensor:
        if x.min() < 0 or x.max() > 1:
            raise ValueError("expected images in [0, 1]")
        return torch.zeros(len(x), 10)

    model = BlackBoxModel(strict)
    assert normalisation(model, X, Y, clean(model)).verdict == "pass"
