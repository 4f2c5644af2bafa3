"""Certificates against a slow obvious twin with SciPy's own tests, and against attacks within the certified radius."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, binomtest, norm
from torch import Tensor, nn

from robustlib.defences.smoothing import Smoothing, certify, lower_bound, predict, smoothing, two_sided
from robustlib.evaluation.batches import make_ready
from robustlib.evaluation.certified import evaluate_certified
from robustlib.norms import size
from robustlib.outcome import join
from robustlib.rng import Draws, seeded

CPU = torch.device("cpu")


def votes_one_by_one(
    model: nn.Module, x: Tensor, index: int, seed: int, sigma: float, n: int, stream: str
) -> np.ndarray:
    """Counts by class over the noisy copies of one image."""
    own = Draws(seed, torch.tensor([index]))
    noisy = torch.cat([x[None] + sigma * own.normal(tuple(x.shape), f"{stream}/{draw}") for draw in range(n)])
    counts = np.zeros(10, int)
    with torch.no_grad():
        for logits in model(noisy):
            counts[logits.argmax()] += 1
    return counts


def test_it_is_cohens_certify_and_predict_one_image_at_a_time(net: nn.Module, test: tuple[Tensor, Tensor]):
    """200 images; alpha is large, so that both outcomes, a class and abstaining, come up."""
    sigma, n0, n, alpha, seed = 0.4, 10, 40, 0.05, 7
    x = test[0][:200]
    draws = Draws(seed, torch.arange(200) + 3)
    found = certify(net, x, sigma=sigma, n0=n0, n=n, alpha=alpha, draws=draws)
    classes = predict(net, x, sigma=sigma, n=n, alpha=alpha, draws=draws)
    for i, image in enumerate(x):
        one = partial(votes_one_by_one, net, image, i + 3, seed, sigma)
        guess = int(one(n0, "certify/select").argmax())
        hits = int(one(n, "certify/estimate")[guess])
        lower = float(beta.ppf(alpha, hits, n - hits + 1)) if hits else 0.0
        expected = (guess, sigma * norm.ppf(lower)) if lower > 0.5 else (-1, 0.0)
        assert (int(found.prediction[i]), float(found.radius[i])) == pytest.approx(expected, abs=1e-9)
        assert int(found.guess[i]) == guess
        counts = one(n, "predict")
        first, second = np.sort(counts)[:-3:-1]
        sure = binomtest(int(first), int(first + second), 0.5).pvalue <= alpha
        assert int(classes[i]) == (int(counts.argmax()) if sure else -1)
    assert 10 < (found.prediction == -1).sum() < 190 and 5 < (classes == -1).sum() < 190


def test_the_bounds_are_scipys():
    hits = np.arange(51)
    exact = [float(binomtest(int(k), 50, alternative="greater").proportion_ci(0.99, "exact").low) for k in hits]
    np.testing.assert_allclose(lower_bound(hits, 50, 0.01), np.array(exact), atol=1e-12)
    pairs = np.array([(a, b) for b in range(1, 41) for a in range((b + 1) // 2, b + 1)], float)
    p = [float(binomtest(int(a), int(b), 0.5).pvalue) for a, b in pairs]
    np.testing.assert_allclose(two_sided(*pairs.T), np.array(p), atol=1e-12)


class Halfplane(nn.Module):
    """Class 1 where the first pixel lies above one half: smoothed, its radius is that pixel's distance to one half."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0] - 0.5
        return torch.stack([-value, value], 1)


@pytest.mark.slow
def test_of_a_halfplane_the_radius_is_the_distance_and_never_more():
    """Closed form: P(class) = Phi(distance / sigma). The bound is below it, by the confidence that n draws give.

    64 images at alpha 0.001: the chance that any bound is above its distance is below 6.4 %, and the seed is fixed.
    """
    distance = torch.linspace(0.02, 0.45, 64)
    x = torch.full((64, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] += distance
    found = certify(Halfplane(), x, sigma=0.25, n=4000)
    certain = found.prediction == 1
    assert not (found.prediction == 0).any() and certain[distance > 0.08].all()
    assert (found.radius <= distance + 1e-9).all()
    assert (found.radius[certain] > distance[certain] - 0.05).all()


def climb(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor, steps: int) -> Tensor:
    """Projected gradient ascent in L2, each image in its own ball: `pgd` has one radius for all."""
    x_adv, radius = x, radius.reshape(-1, 1, 1, 1)
    for _ in range(steps):
        point = x_adv.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        delta = x_adv + 2.5 * radius / steps * slope / slope.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) - x
        delta = delta * (radius / delta.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).clamp_max(1)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv


def test_no_attack_within_the_radius_changes_the_class(net: nn.Module, test: tuple[Tensor, Tensor]):
    """PGD through the expectation, as far as each certificate reaches, then a fresh estimate with other noise.

    A certificate is wrong with a chance of at most alpha = 0.001, for 60 images at most 0.06; the fresh predict errs
    with at most as much and may abstain where an image is now close to undecided. Twice as far, most images fall.
    """
    sigma, seed = 0.25, 1
    x, y = test[0][:60], test[1][:60]
    draws = Draws(seed, torch.arange(60))
    found = certify(net, x, sigma=sigma, n=1000, draws=draws)
    held = (found.prediction == y).nonzero().squeeze(1)
    assert len(held) > 40
    x, y, radius = x[held], y[held], found.radius[held].float()
    smooth = smoothing(net, sigma=sigma, draws=8)
    changed = {}
    for times in (1.0, 2.5):
        with seeded(0, "attack", CPU):
            x_adv = climb(smooth, x, y, times * radius, steps=10)
        assert (size(x_adv - x, "L2") <= times * radius * (1 + 1e-5)).all()
        assert (size(x_adv - x, "L2") > 0.5 * radius).float().mean() > 0.9  # the attack went somewhere
        fresh = predict(net, x_adv, sigma=sigma, n=400, draws=replace(draws[held], seed=99))
        changed[times] = ((fresh != y) & (fresh != -1)).float().mean().item()
    assert changed[1.0] == 0.0
    assert changed[2.5] > 0.1


def test_an_examples_certificate_does_not_know_its_batch(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, draws = test[0][:32], Draws(5, torch.arange(32))
    whole = certify(net, x, sigma=0.3, n0=10, n=50, draws=draws)
    for rows in (torch.arange(8), torch.tensor([31, 4, 17]), torch.tensor([9])):
        part = certify(net, x[rows], sigma=0.3, n0=10, n=50, draws=draws[rows])
        assert torch.equal(part.prediction, whole.prediction[rows])
        assert torch.equal(part.radius, whole.radius[rows])


def test_a_smoothed_model_is_certified_from_within(net: nn.Module, test: tuple[Tensor, Tensor]):
    x = test[0][:20]
    model = smoothing(net, sigma=0.3, draws=2)
    inside = certify(net, x, sigma=0.3, n0=10, n=50)
    assert torch.equal(certify(model, x, n0=10, n=50).radius, inside.radius)
    with pytest.raises(ValueError, match=r"the sigma of the model's smoothing, 0.3, got 0.5"):
        certify(model, x, sigma=0.5)
    with pytest.raises(ValueError, match="expected sigma, the noise to smooth the model with"):
        certify(net, x)


def test_smoothing_is_the_mean_of_probabilities(net: nn.Module, test: tuple[Tensor, Tensor]):
    x, model = test[0][:5], smoothing(net, sigma=0.5, draws=7)
    assert isinstance(model, Smoothing)
    with seeded(0, "passes", CPU):
        found = model(x)
    with seeded(0, "passes", CPU):
        mean = torch.stack([net(x + 0.5 * torch.randn_like(x)).softmax(1) for _ in range(7)]).mean(0)
    torch.testing.assert_close(found.exp(), mean, rtol=1e-5, atol=1e-6)


def test_an_evaluation_counts_what_is_certain_at_each_radius(net: nn.Module, test: tuple[Tensor, Tensor]):
    """All radii from one certificate; groups as they fall, and the columns that follow from the certificates."""
    x, y = test[0], test[1]
    index = torch.arange(150)
    radii = [0.1, 0.3, 2.0]
    ready = make_ready(net, x, 10, CPU)
    options = {"sigma": 0.3, "n0": 10, "n": 100, "alpha": 0.01}
    run = partial(evaluate_certified, ready, x, y, radii, seed=4, device=CPU, **options)
    joined = [join([batch.outcome for batch in column]) for column in zip(*run(index=index), strict=True)]
    found = certify(net, x[:150], sigma=0.3, n0=10, n=100, alpha=0.01, draws=Draws(4, index))
    right = (found.prediction == y[:150]).numpy()
    for eps, outcome in zip(radii, joined, strict=True):
        stands = right & (found.radius.numpy() >= eps)
        np.testing.assert_array_equal(outcome.success, ~stands)
        np.testing.assert_array_equal(outcome.adversarial_correct, stands)
        np.testing.assert_array_equal(outcome.clean_correct, right)
        assert set(outcome.broken_by[right & ~stands]) <= {"certify"} and set(outcome.broken_by[~right]) <= {"clean"}
    assert joined[0].success.mean() < joined[1].success.mean() < joined[2].success.mean() == 1.0
    np.testing.assert_allclose(joined[2].distance, np.where(right, found.radius, 0).astype(np.float32))
    shards = [run(index=index[:100]), run(index=index[100:])]
    again = join([batches[1].outcome for shard in shards for batches in shard])
    np.testing.assert_array_equal(again.success, joined[1].success)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "n from 1 to 1000000, got 0"), ({"n0": 0}, "n0 from 1 to 1000000"), ({"alpha": 1.0}, "alpha between 0 and 1"),
     ({"sigma": 0.0}, "sigma above 0, got 0.0")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        partial(certify, sigma=0.25)(Halfplane(), torch.zeros(1, 1, 2, 2), **options)


def test_nan_is_no_vote():
    """It would be one for the first class, and certified."""

    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1)[:, :1] > 0.6, torch.nan, torch.tensor([[1.0, 0.0]]))

    with pytest.raises(ValueError, match="NaN logits"):
        certify(Breaks(), torch.full((4, 1, 2, 2), 0.5), sigma=0.5, n0=20, n=50)
