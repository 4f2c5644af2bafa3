"""Randomised smoothing, Cohen et al. 2019, https://arxiv.org/abs/1902.02918: as a defence, and as a certificate."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import checked_options
from robustlib.defences.preprocess import Noise
from robustlib.defences.votes import QuickVoter, vote
from robustlib.input_checks import checked
from robustlib.model_calls import ask
from robustlib.rng import Draws, default_draws


class Smoothing(nn.Module):
    """The mean of a model's probabilities over noisy copies of each image, as logits: the logarithm of that mean."""

    def __init__(self, model: nn.Module, sigma: float, draws: int):
        super().__init__()
        self.before = Noise(sigma)
        self.model = model
        self.sigma = sigma
        self.draws = draws

    def forward(self, x: Tensor) -> Tensor:
        found = torch.stack([ask(self.model, self.before(x)).log_softmax(1) for _ in range(self.draws)])
        return found.logsumexp(0) - math.log(self.draws)


@checked_options
def smoothing(model: nn.Module, *, sigma: float = 0.25, draws: int = 16) -> nn.Module:
    """A model smoothed with Gaussian noise, Cohen et al. 2019, https://arxiv.org/abs/1902.02918.

    sigma: of the noise, in units of x.  draws: noisy copies in a pass; probabilities are averaged, so that attacks find
    a gradient (Salman et al. 2019, https://arxiv.org/abs/1906.04584). Raises ValueError unless both are above 0.
    """
    return Smoothing(model, sigma, draws)


@dataclass(frozen=True)
class Certificate:
    """What is certain of each example, but for a chance of alpha.

    prediction: the smoothed model's class, -1 where it abstains, shape (B,).
    radius: in L2 and units of x, within which that class stays; 0 where it abstains, shape (B,), float64.
    guess: the class that won the selection, certain or not, shape (B,).
    """

    prediction: Tensor
    radius: Tensor
    guess: Tensor


@checked
@torch.no_grad()
def certify(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float | None = None,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    draws: Draws | None = None,
) -> Certificate:
    """Certify the majority vote of a model over Gaussian noise: CERTIFY of Cohen et al. 2019.

    model: the model that the noise is put before, in eval mode; of one that `smoothing` made, the model inside, and its
    sigma where none is given; or one that `make_voter` made.  x: images in [0, 1], shape (B, C, H, W).
    n0: votes that select a class; n: other votes, from which a lower bound of its share follows (Clopper and Pearson's,
    one-sided, at level 1 - alpha); it abstains where that is not above one half. The paper's n is 100,000.
    draws: an example's noise is its own, whatever the batch.
    For each example, the chance that the certificate is wrong is at most alpha. With a voter of `make_voter` that holds
    of what votes, smoothed: the copy in half precision where its margin is above the drift, the model elsewhere. It
    holds of the model itself where all those votes are the model's too: so it is unless a logit of the copy is off by
    more than twice what was measured on noisy images.
    """
    base, sigma = unsmoothed(model, sigma)
    draws = default_draws(x, draws)
    if isinstance(base, QuickVoter):
        guess, trusted = base.select(x, sigma, n0, draws, "certify/select")
        hits = base.hits(x, sigma, n, draws, "certify/estimate", guess, trusted)
    else:
        guess = vote(base, x, sigma, n0, draws, "certify/select").argmax(1)
        hits = vote(base, x, sigma, n, draws, "certify/estimate").gather(1, guess[:, None]).squeeze(1)
    lower = torch.from_numpy(lower_bound(hits.cpu().numpy(), n, alpha)).to(x.device)
    certain = lower > 0.5
    radius = torch.where(certain, sigma * torch.special.ndtri(lower), 0.0)
    return Certificate(torch.where(certain, guess, -1), radius, guess)


@checked
@torch.no_grad()
def predict(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float | None = None,
    n: int = 1000,
    alpha: float = 0.001,
    draws: Draws | None = None,
) -> Tensor:
    """The smoothed model's class for each image, -1 where it abstains, shape (B,): PREDICT of Cohen et al. 2019.

    It abstains where a binomial test does not tell the first two classes apart at level alpha; the chance of a class
    that is not the smoothed model's is at most alpha. Everything else is as for `certify`.
    """
    base, sigma = unsmoothed(model, sigma)
    votes = vote(base, x, sigma, n, default_draws(x, draws), "predict")
    first, second = votes.topk(2, dim=1).values.cpu().numpy().astype(np.float64).T
    certain = torch.from_numpy(two_sided(first, first + second) <= alpha).to(x.device)
    return torch.where(certain, votes.argmax(1), -1)


def lower_bound(hits: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Clopper and Pearson's one-sided lower bound of a share at level 1 - alpha, from hits among n."""
    from scipy.special import betaincinv  # here: a tenth of what loading torch takes, which only certificates need

    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, alpha), 0.0)


def two_sided(first: np.ndarray, both: np.ndarray) -> np.ndarray:
    """P-value of `first` among `both` votes, at least half of them, if either were as likely."""
    # The chance of so many or more is the incomplete beta function; in the middle both tails hold everything.
    from scipy.special import betainc

    return np.where(2 * first > both, np.minimum(1, 2 * betainc(np.maximum(first, 1), both - first + 1, 0.5)), 1.0)


def unsmoothed(model: nn.Module, sigma: float | None) -> tuple[nn.Module, float]:
    """The model to put noise before, and the noise: of a smoothed model, the one inside and its own."""
    if isinstance(model, Smoothing):
        return model.model, match_sigma(model.sigma, sigma)
    return model, match_sigma(None, sigma)


def match_sigma(own: float | None, sigma: float | None) -> float:
    """The noise to certify with, of a model whose own smoothing has that sigma, or that has none."""
    if own is not None and sigma not in (None, own):
        raise ValueError(f"certify: expected the sigma of the model's smoothing, {own}, got {sigma}")
    sigma = own if sigma is None else sigma
    if sigma is None:
        raise ValueError("certify: expected sigma, the noise to smooth the model with: it has no smoothing of its own")
    return sigma
