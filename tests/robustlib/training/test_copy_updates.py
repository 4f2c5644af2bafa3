"""The copy that attacks in training search on is right at every epoch's weights, not only at the first ones."""

import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks.pgd import pgd
from robustlib.inference.model_modes import evaluating
from robustlib.rng import Draws, seeded
from robustlib.settings import TrainSettings
from robustlib.training import copy_updates
from robustlib.training.copy_updates import tracking_copy
from robustlib.training.loop import fit, validate

CPU = torch.device("cpu")


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks search in float16, as on a GPU."""
    monkeypatch.setattr(copy_updates, "suits_half", lambda model, device: True)
    monkeypatch.setattr(copy_updates, "halves", lambda device: [torch.float16])


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x.flatten(1)).relu())

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """The same function with other numbers on the way."""
        for parameter in self.before.parameters():
            parameter.mul_(factor)
        self.after.weight.div_(factor)


@pytest.fixture
def model() -> Hidden:
    with seeded(0, "weights", CPU):
        return Hidden()


def fallen(attacked: nn.Module, model: nn.Module, x: Tensor) -> tuple[int, float]:
    """Of the images as the model calls them, how many fall to PGD on `attacked`, and by how much any pixel moved."""
    with evaluating(model), torch.no_grad():
        y = model(x).argmax(1)
    with evaluating(model):
        x_adv = pgd(attacked, x, y, eps=0.3, steps=20, random_start=False, draws=Draws(0, torch.arange(len(x))))
        return int((model(x_adv).argmax(1) != y).sum()), float((x_adv - x).abs().max())


@pytest.mark.parametrize("chosen", [False, True])
def test_later_weights_beyond_float16_do_not_stop_the_attack(chosen: bool, float16: None, model: Hidden, test):
    x = test[0][:64]
    copy = tracking_copy(model, x)
    assert copy is not None and copy.choose() == "float16, folded"
    expected = fallen(model, model, x)
    assert expected[0] > 50
    assert fallen(copy(), model, x)[0] == pytest.approx(expected[0], abs=2) and copy.overflows == 0
    model.scale(3e5)
    if chosen:  # as every epoch begins
        assert copy.choose() == "float32, folded (given up: float16, folded: numbers beyond its range)"
    assert fallen(copy(), model, x)[0] == pytest.approx(expected[0], abs=2)
    assert (copy.overflows > 0) == (not chosen)


def test_a_copy_that_is_right_again_is_used_again(float16: None, model: Hidden, test):
    """What an epoch uses is a matter of its weights alone, so that a run taken up again goes on as it would have."""
    copy = tracking_copy(model, test[0][:64])
    assert copy is not None
    for factor, mode in ((3e5, "float32, folded (given up"), (1 / 3e5, "float16, folded")):
        model.scale(factor)
        assert copy.choose().startswith(mode)


def test_where_no_copy_is_right_the_model_itself_is_attacked(model: Hidden, test, monkeypatch: pytest.MonkeyPatch):
    copy = tracking_copy(model, test[0][:64])
    assert copy is not None
    monkeypatch.setattr(copy_updates, "compare", lambda *_, **__: (1.0, "other logits"))
    assert copy.choose().startswith("float32, as given (given up: ")
    assert copy() is model and copy.overflows == 0


def test_validation_calls_no_network_robust_that_its_copy_cannot_attack(float16: None, model: Hidden, train):
    x, y = train[0][:100], train[1][:100]
    settings = TrainSettings(objective="pgd", validation_eps=0.3)
    copy = tracking_copy(model, x[:64].float() / 255)
    assert copy is not None
    expected = validate(model, x, y, settings, 0, CPU)
    model.scale(3e5)
    assert validate(model, x, y, settings, 0, CPU, copy) == pytest.approx(expected, abs=0.02)


def test_the_history_says_what_was_attacked(float16: None, train):
    with seeded(0, "weights", CPU):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    settings = TrainSettings(objective="fgsm", epochs=2, examples=100, validation_examples=20)
    *_, last = fit(model, train[0], train[1], settings, seed=0, device=CPU)
    assert [epoch.search for epoch in last.history] == ["float16, folded"] * 2
