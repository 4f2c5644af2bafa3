"""Votes in rounds, stopped as soon as they decide: a rule of counts alone, with one guarantee over all that is said.

A class is the smoothed model's where more than half of all noisy copies are for it, and stays so within a radius r
in L2 where more than the share Phi(r / sigma) is (Cohen et al. 2019, https://arxiv.org/abs/1902.02918). So all that is
asked of an image is on which side of a few shares one number lies: the chance p that a noisy copy is for its class.

Votes are asked in a fixed list of K rounds. After each, Clopper and Pearson's exact bounds are looked at, from above
and from below, at level alpha / 2K. By the union bound all of them hold at once but for a chance of alpha. So it may be
stopped after any of them, for whatever reason, and however many shares are asked about: each statement follows from one
of these bounds. Rounds grow by half, and one of them is the number of votes that decides the highest share where all
are hits, as they nearly are for most images that are certified at all.

A confidence sequence (Voracek 2024, https://arxiv.org/abs/2406.17830) may be looked at after every vote, and never
ends. Votes come in batches and end at n here, so that its looks between rounds would be paid for and not used: Robbins'
with a uniform prior shows a share p by h hits of n where (n + 1) C(n, h) p^h (1 - p)^(n - h) <= alpha / 2. If all are
hits it takes 609 votes at sigma 0.25, radius 0.5, alpha 0.001, and the rounds up to 10,000 votes take 448.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GROWTH = 1.5
FIRST = 40  # votes of the first round, at least: those that select the class are more
HALF = 0.5  # the share of the votes that makes a class the smoothed model's


@dataclass(frozen=True)
class Rule:
    """What counts decide.

    shares: those that a class must exceed, rising, (T,).  rounds: votes asked by the end of each round, rising, (K,).
    enough: the least hits after a round by which the share is exceeded, (K, T); one more than its votes where none are.
    too_few: the most hits after a round by which it is not, (K, T); -1 where none are.
    """

    shares: tuple[float, ...]
    rounds: tuple[int, ...]
    enough: np.ndarray
    too_few: np.ndarray

    def look(self, number: int, hits: np.ndarray, found: np.ndarray) -> np.ndarray:
        """What is decided by the end of a round: 1 where a share is exceeded, -1 where it is not, 0 as long as nobody
        knows, int8, (B, T). The first decision stands.

        number: of the round, from 0.  hits: votes for the class so far, (B,).  found: what was decided before.
        """
        above, below = (hits[:, None] >= self.enough[number]), (hits[:, None] <= self.too_few[number])
        return np.where(found == 0, above.astype(np.int8) - below, found)


@lru_cache(maxsize=32)
def make_rule(shares: tuple[float, ...], *, n: int, alpha: float) -> Rule:
    """The rule for these shares, rising, of at least a half, with n votes at most and a chance of alpha to be wrong.

    Raises ValueError where the highest could not be decided even if all votes were hits: a share of 1 never
    is, which in float64 is that of a radius beyond some eight sigma.
    """
    rounds = rounds_up_to(n, shares[-1], alpha)
    level = alpha / (2 * len(rounds))
    tables = [[decisive_hits(total, share, level) for share in shares] for total in rounds]
    enough, too_few = np.array(tables).transpose(2, 0, 1)
    return Rule(shares, rounds, enough, too_few)


def rounds_up_to(n: int, highest: float, alpha: float) -> tuple[int, ...]:
    """Votes asked by the end of each round. highest: the share that one round decides where all votes are hits."""
    if highest >= 1:
        raise ValueError("no number of votes shows that a class has all of them")
    rounds: list[int] = [n]
    while True:
        known = len(rounds)
        least = all_hits(highest, alpha / (2 * known))
        if least > n:
            raise ValueError(f"expected at least {least} votes to show that a class has {highest:.6g} of them, got {n}")
        steps = range(-math.floor(math.log(max(least / FIRST, 1), GROWTH)), math.ceil(math.log(n / least, GROWTH)))
        rounds = [*sorted({math.ceil(least * GROWTH**step) for step in steps} - {n}), n]
        if len(rounds) <= known:  # the level that it was made for is no less than theirs
            return tuple(rounds)


def all_hits(share: float, level: float) -> int:
    """How many votes, all of them hits, show at this level that a share is exceeded."""
    return math.ceil(math.log(level) / math.log(share))


def decisive_hits(votes: int, share: float, level: float) -> tuple[int, int]:
    """The least hits among so many votes that show a share exceeded at this level, and the most that show it is not.

    They are those at which Clopper and Pearson's bounds pass the share, by exact binomial tails.
    """
    from scipy.special import betainc  # here: see `lower_bound`

    def so_many_are_enough(hits: int) -> bool:
        """Whether so many or more are as rare as the level, if the share were exactly this."""
        return hits > 0 and betainc(hits, votes - hits + 1, share) <= level

    def so_few_are_not_rare(hits: int) -> bool:
        return hits == votes or betainc(votes - hits, hits + 1, 1 - share) > level

    every = range(votes + 1)  # both are false up to some hits and true from there on
    enough = bisect_left(every, True, key=so_many_are_enough)
    return enough, bisect_left(every, True, key=so_few_are_not_rare) - 1


def share_of_radius(radius: float, sigma: float) -> float:
    """The share of votes that certifies a radius: the standard normal distribution at radius / sigma."""
    return 0.5 * math.erfc(-radius / (sigma * math.sqrt(2)))
