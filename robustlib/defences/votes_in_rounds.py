"""Certificates at the cost of a request: votes in rounds until the class and all stated radii are decided."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.arguments import NOT_NEGATIVE, check_range
from robustlib.defences.smoothing import unsmoothed
from robustlib.defences.stopping_rule import HALF, Rule, make_rule, share_of_radius
from robustlib.defences.votes import QuickVoter, vote
from robustlib.input_checks import checked
from robustlib.rng import Draws

UNKNOWN_BITS = 128  # of a seed that nobody can guess


@dataclass(frozen=True)
class Decision:
    """What is certain of each example, but for a chance of alpha over all that is said of it.

    label: the smoothed model's class, -1 where it abstains, (B,).  holds: whether that class stays within each of the
    stated radii, (B, R), bool.  votes: noisy copies that were asked, (B,).  guess: the class that won the selection,
    certain or not, (B,).  shares: of the selection's votes, by class, float32, (B, classes).
    """

    label: Tensor
    holds: Tensor
    votes: Tensor
    guess: Tensor
    shares: Tensor


@checked
@torch.no_grad()
def decide(
    model: nn.Module,
    x: Tensor,
    *,
    sigma: float | None = None,
    radii: Sequence[float] = (),
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    draws: Draws | None = None,
) -> Decision:
    """Say of the majority vote over Gaussian noise which class it is for, and within which radii it stays that.

    As CERTIFY of Cohen et al. 2019, https://arxiv.org/abs/1902.02918, but that votes are asked only until everything is
    decided, by the rule in `stopping_rule.py`: an image that is decided drops out. What is not after n votes does not
    hold. No radius holds that Clopper and Pearson's bound from the same votes at level alpha does not reach.

    model: as for `certify`.  x: images in [0, 1], shape (B, C, H, W).
    sigma: of the noise, in units of x.  radii: in L2 and units of x, rising.
    n0: votes that select the class.  n: votes in all, at most, those among them.
    alpha: the chance that anything said of an image is wrong: its class, a radius that holds, or one that was found not
    to before its votes were at an end. It is of one decision: who asks often enough about an image just beyond a radius
    is told once that it holds.
    draws: the noise, for tests alone: where none are given its seed comes from the operating system. Whoever knows the
    noise beforehand can look for an image whose certificate is wrong, and find one more often than alpha.
    Raises ValueError for a radius that n votes cannot show.
    """
    base, sigma = unsmoothed(model, sigma)
    rule = rule_for(radii, sigma, n=n - n0, alpha=alpha)
    draws = unknown_draws(x) if draws is None else draws
    if isinstance(base, QuickVoter):
        counts, trusted = base.selection(x, sigma, n0, draws, "rounds/select")
    else:
        counts, trusted = vote(base, x, sigma, n0, draws, "rounds/select"), torch.ones_like(draws.index) == 1
    guess = counts.argmax(1)
    found = np.zeros((len(x), len(rule.shares)), np.int8)
    hits, asked = torch.zeros_like(guess), np.zeros(len(x), np.int64)
    row, before = torch.arange(len(x), device=x.device), 0
    for number, total in enumerate(rule.rounds):
        if not len(row):
            break
        hits[row] += hits_of(base, x, sigma, total - before, draws, f"rounds/{number}", guess, trusted, row)
        place, before = row.cpu().numpy(), total
        found[place] = rule.look(number, hits[row].cpu().numpy(), found[place])
        asked[place] = total
        row = row[torch.from_numpy((found[place] == 0).any(1)).to(row.device)]
    # What holds of a share holds of those below it.
    holds = torch.from_numpy(np.logical_and.accumulate(found == 1, axis=1)).to(x.device)
    votes = torch.from_numpy(asked).to(x.device) + n0
    return Decision(torch.where(holds[:, 0], guess, -1), holds[:, 1:], votes, guess, counts.float() / n0)


def hits_of(
    base: nn.Module,
    x: Tensor,
    sigma: float,
    n: int,
    draws: Draws,
    stream: str,
    guess: Tensor,
    trusted: Tensor,
    row: Tensor,
) -> Tensor:
    """How many of n votes on the images of these rows are for their guess, int64."""
    if isinstance(base, QuickVoter) and base.copy.recorded:
        # One recording is of so many images: those that are decided are asked with the others, and not counted.
        return base.hits(x, sigma, n, draws, stream, guess, trusted)[row]
    if isinstance(base, QuickVoter):
        return base.hits(x[row], sigma, n, draws[row], stream, guess[row], trusted[row])
    return vote(base, x[row], sigma, n, draws[row], stream).gather(1, guess[row, None]).squeeze(1)


def rule_for(radii: Sequence[float], sigma: float, *, n: int, alpha: float) -> Rule:
    """The rule for a class and these radii. Raises ValueError where they do not rise, or n votes cannot show them."""
    for radius in radii:
        check_range("decide", "radius", radius, NOT_NEGATIVE)
    if list(radii) != sorted(set(radii)):
        raise ValueError(f"decide: expected radii that rise, got {', '.join(f'{radius:g}' for radius in radii)}")
    if n < 1:
        raise ValueError("decide: expected more votes in all, n, than n0, which select the class")
    shares = (HALF, *(share_of_radius(radius, sigma) for radius in radii))
    try:
        return make_rule(shares, n=n, alpha=alpha)
    except ValueError as error:
        widest = f"radius {radii[-1]:g} at sigma {sigma:g}" if radii else "a class"
        more = "a larger sigma" if shares[-1] >= 1 else "more of n, sigma or alpha"
        raise ValueError(f"decide: {widest}: {error}: ask for a smaller radius, or {more}") from None


def unknown_draws(x: Tensor) -> Draws:
    """Random numbers that nobody can know beforehand, for the images as they lie in the batch."""
    return Draws(secrets.randbits(UNKNOWN_BITS), torch.arange(len(x), device=x.device))
