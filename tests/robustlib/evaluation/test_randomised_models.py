"""Randomised models: a classifier with noise on its logit, whose accuracy is the normal distribution's."""

import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.attacks.pgd import pgd
from robustlib.evaluation.batches import evaluate_batches
from robustlib.inference.expectation import Expectation, is_randomised
from robustlib.metrics import summarise
from robustlib.models import build
from robustlib.outcome import join, score
from robustlib.rng import Draws

SIGMA = 0.5


class Noisy(nn.Module):
    """Class 1 where the mean of the pixels plus noise is above one half: P(class 1) = Phi((mean - 0.5) / sigma)."""

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).mean(1) - 0.5
        value = value + SIGMA * torch.randn_like(value)
        return torch.stack([torch.zeros_like(value), value], 1)


def phi(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def images(n: int, level: float) -> tuple[Tensor, Tensor]:
    return torch.full((n, 1, 2, 2), level), torch.ones(n, dtype=torch.long)


class Spied:
    def __init__(self, attack):
        self.attack, self.models = attack, []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
        self.models.append(model)
        return self.attack(model, x, y, draws=draws)


def climb(model: nn.Module, x: Tensor, y: Tensor, *, draws: Draws) -> Tensor:
    return pgd(model, x, y, eps=0.3, steps=5, draws=draws)


def run(x: Tensor, y: Tensor, attacks, **options):
    batches = list(evaluate_batches(Noisy(), x, y, attacks, norm="Linf", num_classes=2, **options))
    return torch.cat([batch.x_adv for batch in batches]), join([batch.outcome for batch in batches])


def test_accuracies_are_means_over_draws():
    """200 images of 100 draws each: the standard error of a mean is at most 0.0036.

    Which image is kept is decided on eot_draws of them: 150 tell 0.73 from 0.5 for every example.
    """
    x, y = images(200, 0.8)
    spied = Spied(climb)
    x_adv, found = run(x, y, [("pgd", spied)], eps=0.3, eot_draws=150, batch_size=128)
    facts = summarise(vars(found))
    assert facts["clean_accuracy"] == pytest.approx(phi(0.3 / SIGMA), abs=0.015)  # 0.73
    # The attack lowers every pixel by eps, from 0.8 to 0.5, where the noise alone decides.
    torch.testing.assert_close(x_adv, torch.full_like(x, 0.5), rtol=0, atol=1e-6)
    assert facts["robust_accuracy"] == pytest.approx(0.5, abs=0.015)
    assert facts["any_draw_accuracy"] == 0.0  # 0.5^100
    assert set(found.broken_by.tolist()) <= {"pgd", ""} and (found.broken_by[found.success] == "pgd").all()
    # The attack sees the mean of eot_draws passes, never the model itself.
    assert [(type(model), model.draws) for model in spied.models] == [(Expectation, 150)] * 2
    # The share of right draws is a binomial's: its variance over examples is p (1 - p) / draws.
    assert found.clean_correct.var() == pytest.approx(phi(0.6) * phi(-0.6) / 100, rel=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("pgd", {"steps": 20}),
        ("apgd-ce", {"steps": 20}),
        ("square", {"queries": 150}),
        ("fab", {"steps": 20}),
        ("deepfool", {"norm": "Linf"}),
        ("fmn", {"norm": "Linf", "steps": 30}),
    ],
)
def test_no_attack_stops_where_the_mean_of_the_draws_is_only_just_wrong(name: str, options: dict[str, int]):
    """Every pixel can fall from 0.8 to 0.2: right in 27 % of draws. Where the mean is just wrong, half of them are."""
    x, y = images(40, 0.8)
    x_adv, found = run(x, y, [(name, partial(ATTACKS[name], eps=0.6, **options))], eps=0.6)
    # The last three stop at 0.5; whether the edge is worse is decided by few draws, and rarely wrong.
    assert x_adv.mean() < (0.26 if name in ("fab", "deepfool", "fmn") else 0.23)
    assert summarise(vars(found))["robust_accuracy"] == pytest.approx(phi(-0.3 / SIGMA), abs=0.045)


class Targets(nn.Module):
    """Noise on the logit of class 0, which grows with the first pixel, against two that grow with one other each."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        own = pixels[:, 0] + 0.5 + SIGMA * torch.randn_like(pixels[:, 0])
        return torch.stack([own, pixels[:, 1], 0.2 * pixels[:, 2], 0.1 * pixels[:, 3]], 1)


@pytest.mark.slow
def test_more_targets_make_no_attack_weaker():
    """Class 1 can be brought nearest: images made towards 2 and 3 must not stand in for those made towards it."""
    x, y = torch.full((40, 1, 2, 2), 0.5), torch.zeros(40, dtype=torch.long)
    shares = {}
    for targets in (1, 3):
        attack = partial(ATTACKS["apgd-t"], eps=0.2, steps=20, loss="margin", targets=targets)
        batches = list(evaluate_batches(Targets(), x, y, [("apgd-t", attack)], norm="Linf", eps=0.2, num_classes=4))
        shares[targets] = join([batch.outcome for batch in batches]).adversarial_correct.mean()
    assert shares[3] == pytest.approx(phi((0.3 + 0.5 - 0.7) / SIGMA), abs=0.03)
    assert shares[1] == pytest.approx(shares[3], abs=0.03)


@pytest.mark.slow
def test_random_search_keeps_its_best_point():
    """The best of 300 points among which the mean falls to 0.3 and less, not the first that is wrong, nor the clean one."""
    x, y = torch.full((40, 1, 1, 1), 0.8), torch.ones(40, dtype=torch.long)
    attack = partial(ATTACKS["noise"], eps=0.6, queries=300)
    x_adv, found = run(x, y, [("noise", attack)], eps=0.6)
    assert x_adv.max() < 0.35
    assert summarise(vars(found))["robust_accuracy"] < phi(-0.1 / SIGMA)


def test_a_models_noise_may_be_numpys_or_pythons():
    """All of it comes back with the seed, and what the caller draws is left alone."""

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = x.flatten(1).mean(1) - 0.5
            value = value + torch.from_numpy(np.random.normal(size=len(x))).float() * SIGMA + random.gauss(0, 0.1)
            return torch.stack([torch.zeros_like(value), value], 1)

    x, y = images(30, 0.7)

    def once() -> np.ndarray:
        (batch,) = evaluate_batches(
            Own(), x, y, [("pgd", climb)], norm="Linf", eps=0.3, num_classes=2, draws=20, eot_draws=5
        )
        return batch.outcome.adversarial_correct

    np.random.seed(1)
    random.seed(1)
    first = once()
    drawn = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    assert drawn == (np.random.rand(), random.random())
    assert 0.05 < first.mean() < 0.95
    assert np.array_equal(once(), first)


def test_success_is_the_vote_of_the_draws():
    """P(right) is 0.84 clean and 0.16 attacked: a hundred draws decide that beyond doubt."""
    x, y = images(60, 1.0)
    attacks = [("same", lambda model, x, y, *, draws: x.clone()), ("dark", lambda model, x, y, *, draws: x * 0)]
    _, found = run(x, y, attacks, eps=1.0, eot_draws=150)
    assert found.success.all() and (found.broken_by == "dark").all()  # the later one is better, and is kept
    assert (found.distance == 1).all() and (found.adversarial_prediction == 0).all()
    assert found.clean_correct.mean() == pytest.approx(phi(1), abs=0.02)
    assert found.adversarial_correct.mean() == pytest.approx(phi(-1), abs=0.02)
    _, found = run(torch.zeros_like(x), y, attacks, eps=1.0)
    assert (found.clean_prediction == 0).all() and (found.broken_by == "clean").all()


def test_an_image_within_the_ball_is_tried_at_its_edge():
    """As minimum-norm attacks leave it, where the mean is only just wrong: P(right) is 0.5 there, and 0.16 at the edge."""
    x, y = images(60, 1.0)
    x_adv, found = run(x, y, [("boundary", lambda model, x, y, *, draws: x * 0 + 0.5)], eps=1.0, eot_draws=150)
    assert torch.equal(x_adv, torch.zeros_like(x))
    assert found.adversarial_correct.mean() == pytest.approx(phi(-1), abs=0.02)
    x_adv, _ = run(x * 0 + 0.5, y, [("better", lambda model, x, y, *, draws: x + 0.2)], eps=0.5, eot_draws=150)
    torch.testing.assert_close(x_adv, torch.full_like(x, 0.7))  # farther is no better for it
    x_adv, _ = run(x, y, [("boundary", lambda model, x, y, *, draws: x * 0 + 0.5)], eps=None, eot_draws=150)
    assert torch.equal(x_adv, torch.full_like(x, 0.5))  # without a radius the nearest is wanted


def test_what_is_wrong_from_the_start_lies_at_distance_zero():
    """As for a fixed model, also where an attack moves it further still. P(right) is 0.27, then 0.16."""
    x, y = images(50, 0.2)
    _, found = run(x, y, [("dark", lambda model, x, y, *, draws: x * 0)], eps=0.2)
    assert found.success.all() and (found.broken_by == "clean").all()
    assert (found.distance == 0).all()


def test_an_attack_that_makes_it_better_shows():
    """The clean image is no candidate, for chance would let it win: robust accuracy above clean accuracy says it all."""
    x, y = images(50, 0.5)
    x_adv, found = run(x, y, [("bright", lambda model, x, y, *, draws: x * 0 + 1)], eps=0.5)
    assert torch.equal(x_adv, torch.ones_like(x))
    assert found.clean_correct.mean() == pytest.approx(0.5, abs=0.03)
    assert found.adversarial_correct.mean() == pytest.approx(phi(1), abs=0.03)


@pytest.mark.parametrize("attacks", [[], [("pgd", climb)]], ids=["none", "pgd"])
def test_what_fell_has_a_reason_and_what_stands_has_none(attacks):
    """At one half the vote is a coin's: an image that no attack was found for may lose it in the second count."""
    x, y = images(100, 0.5)
    _, found = run(x, y, attacks, eps=0.3)
    assert 0 < found.success.mean() <= 1
    assert np.array_equal(found.broken_by == "", ~found.success)


def test_the_seed_decides():
    x, y = images(40, 0.6)
    before = torch.get_rng_state()
    shares = [run(x, y, [("pgd", climb)], eps=0.3, seed=seed)[1].adversarial_correct for seed in (0, 0, 1)]
    assert np.array_equal(shares[0], shares[1]) and not np.array_equal(shares[0], shares[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_score_counts_votes():
    class Turns(nn.Module):
        """Class 0, 1, 1, 2, 0, 1, 1, 2, ... for whatever image."""

        turn = -1

        def forward(self, x: Tensor) -> Tensor:
            self.turn += 1
            return nn.functional.one_hot(torch.full((len(x),), (0, 1, 1, 2)[self.turn % 4]), 3).float()

    result = score(Turns(), torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), 8)
    assert result.prediction.tolist() == [1, 1, 1, 1]
    assert result.correct.tolist() == [0.25, 0.5, 0.25, 0.25] and not result.survived.any()
    single = score(Turns(), torch.zeros(2, 1), torch.tensor([0, 1]), 1)
    assert single.correct.tolist() == [1, 0] and single.survived.tolist() == [True, False]


def test_a_network_with_dropout_is_found_out(test):
    model = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8), dropout=0.5)
    x, y = test[0][:64], test[1][:64]
    assert is_randomised(model, x)
    found = join(
        [batch.outcome for batch in evaluate_batches(model, x, y, [("pgd", climb)], eps=0.3, draws=25, eot_draws=2)]
    )
    shares = found.clean_correct * 25
    np.testing.assert_allclose(shares, np.rint(shares), atol=1e-4)
    assert len(set(np.rint(shares).tolist())) > 2  # neither always right nor always wrong
    assert (found.adversarial_survived <= (found.adversarial_correct == 1)).all()
