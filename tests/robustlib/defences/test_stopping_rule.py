"""The rule by which votes stop: its chance of an error by exact enumeration, and beside SciPy's bounds."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from robustlib.defences.smoothing import lower_bound
from robustlib.defences.stopping_rule import HALF, Rule, all_hits, decisive_hits, make_rule, share_of_radius

ALPHA = 0.001
SHARES = (HALF, share_of_radius(0.25, 0.25), share_of_radius(0.5, 0.25))


@pytest.mark.parametrize(("votes", "share", "level"), [(1, 0.5, 0.5), (30, 0.5, 0.01), (200, 0.9, 1e-4)])
def test_decisive_hits_are_where_clopper_and_pearsons_bounds_pass(votes: int, share: float, level: float):
    hits = np.arange(votes + 1)
    lower = np.nan_to_num(beta.ppf(level, hits, votes - hits + 1), nan=0.0)
    upper = np.nan_to_num(beta.ppf(1 - level, hits + 1, votes - hits), nan=1.0)
    enough, too_few = decisive_hits(votes, share, level)
    assert enough == min([*np.flatnonzero(lower >= share), votes + 1])
    assert too_few == max([*np.flatnonzero(upper <= share), -1])


def test_many_votes_need_no_table_of_all_counts():
    """A thousand million votes: the bounds pass the share between two neighbouring counts."""
    votes, share, level = 10**9, 0.9, 1e-5
    enough, too_few = decisive_hits(votes, share, level)
    assert binom.sf(enough - 1, votes, share) <= level < binom.sf(enough - 2, votes, share)
    assert binom.cdf(too_few, votes, share) <= level < binom.cdf(too_few + 1, votes, share)


def test_rounds_grow_by_half_through_the_first_that_may_decide_all():
    rule = make_rule(SHARES, n=9900, alpha=ALPHA)
    first = next(n for n, enough in zip(rule.rounds, rule.enough[:, -1], strict=True) if enough <= n)
    assert all_hits(SHARES[-1], ALPHA / (2 * len(rule.rounds))) <= first < 460
    assert rule.rounds[-1] == 9900 and 40 <= rule.rounds[0] < 60
    assert all(1 < after / before <= 1.6 for before, after in pairwise(rule.rounds))
    # Of an image whose noisy copies all agree, 9,900 votes are spared but for these.
    assert rule.enough[rule.rounds.index(first), -1] == first


def test_the_share_of_a_radius_is_the_normal_distribution():
    for radius in (0.0, 0.25, 0.5, 3.0):
        assert share_of_radius(radius, 0.25) == pytest.approx(norm.cdf(radius / 0.25), rel=1e-12)


def chances_of_error(rule: Rule, p: float) -> tuple[float, float]:
    """The chances of a share said to be exceeded that is not, and of the reverse, by all counts after all rounds.

    p: of a hit. Of the shares those next to p alone matter: whatever is said wrongly of one farther off is said of them.
    """
    above = next((t for t, share in enumerate(rule.shares) if share >= p), None)
    below = next((t for t in reversed(range(len(rule.shares))) if rule.shares[t] <= p), None)
    live = {(above is not None, below is not None): np.ones(1)}
    wrong, before = [0.0, 0.0], 0
    for number, total in enumerate(rule.rounds):
        hits, step = np.arange(total + 1), binom.pmf(np.arange(total - before + 1), total - before, p)
        after: dict[tuple[bool, bool], np.ndarray] = {}
        for (open_above, open_below), mass in live.items():
            mass = np.convolve(mass, step)
            said_above = hits >= rule.enough[number, above] if open_above else hits < 0
            said_below = hits <= rule.too_few[number, below] if open_below else hits < 0
            wrong[0] += mass[said_above].sum()
            wrong[1] += mass[said_below].sum()
            mass[said_above | said_below] = 0
            rightly_not = hits <= rule.too_few[number, above] if open_above else hits < 0
            rightly = hits >= rule.enough[number, below] if open_below else hits < 0
            for over in (False, True):
                for under in (False, True):
                    state = (open_above and not over, open_below and not under)
                    mine = np.where((rightly_not == over) & (rightly == under), mass, 0)
                    if any(state) and mine.any():
                        after[state] = after.get(state, 0) + mine
        live, before = after, total
    return wrong[0], wrong[1]


GRID = sorted({*np.linspace(0.02, 0.999, 12), *SHARES, *(s + d for s in SHARES for d in (-0.01, -0.001, 0.001, 0.01))})


def test_no_chance_of_a_hit_makes_errors_likelier_than_alpha():
    """The proof: every count that may come, after every round. Neither side takes more than its half."""
    rule = make_rule(SHARES, n=1500, alpha=ALPHA)
    found = np.array([chances_of_error(rule, p) for p in GRID])
    assert found.max() <= ALPHA / 2
    assert found.sum(1).max() <= ALPHA
    at = [GRID.index(share) for share in SHARES]
    assert (found[at] > ALPHA / 20).all()  # what was spent at a share itself is not nothing


def test_nor_do_they_with_all_votes():
    rule = make_rule(SHARES, n=9900, alpha=ALPHA)
    for share in SHARES[1:]:
        found = chances_of_error(rule, share)
        assert ALPHA / 20 < max(found) <= ALPHA / 2


@pytest.mark.slow
def test_ten_thousand_simulated_images():
    """At most 20 are told something wrong, whatever their chance of a hit; all that is clear is told, and soon."""
    rule, random = make_rule(SHARES, n=9900, alpha=ALPHA), np.random.default_rng(0)
    for p in (0.499, 0.5, 0.501, 0.7, SHARES[1] - 0.003, SHARES[1], SHARES[1] + 0.003, SHARES[2] - 0.003, SHARES[2],
              0.97, 0.999, 1.0):  # fmt: skip
        found, hits = np.zeros((10_000, 3), np.int8), np.zeros(10_000, np.int64)
        votes, before = np.full(10_000, rule.rounds[-1]), 0
        for number, total in enumerate(rule.rounds):
            hits += random.binomial(total - before, p, 10_000)
            decided = (found != 0).all(1)
            found = rule.look(number, hits, found)
            votes = np.where(~decided & (found != 0).all(1), total, votes)
            before = total
        exceeded = np.array(rule.shares) < p
        wrong = ((found == 1) & ~exceeded) | ((found == -1) & (np.array(rule.shares) <= p))
        assert wrong.any(1).sum() <= 20, p
        if p in (0.7, 0.97, 0.999, 1.0):
            clear = np.abs(np.array(rule.shares) - p) > 0.015
            assert (found[:, clear] == np.where(exceeded, 1, -1)[clear]).mean() > 0.999
        if p in (0.7, 0.999, 1.0):
            assert np.median(votes) <= 800


def test_nothing_is_said_beyond_cohens_bound():
    """Clopper and Pearson's bound from the same votes, at alpha, reaches whatever is said to hold."""
    rule = make_rule(SHARES, n=9900, alpha=ALPHA)
    for number, total in enumerate(rule.rounds):
        for t, share in enumerate(rule.shares):
            if (hits := rule.enough[number, t]) <= total:
                assert lower_bound(np.array([hits]), total, ALPHA)[0] >= share
        assert (np.diff(rule.enough[number]) >= 0).all() and (np.diff(rule.too_few[number]) >= 0).all()


def test_the_first_decision_stands():
    rule = make_rule((HALF,), n=500, alpha=0.01)
    hits = np.array([rule.enough[0, 0], rule.too_few[0, 0], (rule.enough[0, 0] + rule.too_few[0, 0]) // 2])
    found = rule.look(0, hits, np.zeros((3, 1), np.int8))
    assert found.ravel().tolist() == [1, -1, 0]
    assert rule.look(len(rule.rounds) - 1, np.array([0, 500, 500]), found).ravel().tolist() == [1, -1, 1]


@pytest.mark.parametrize(
    ("radius", "told"),
    [
        (1.0, r"expected at least 239991 votes to show that a class has 0.999968 of them, got 9900"),
        (9.0, "no number of votes shows that a class has all of them"),
    ],
)
def test_a_share_that_no_count_can_show_is_refused(radius: float, told: str):
    with pytest.raises(ValueError, match=f"^{told}$"):
        make_rule((HALF, share_of_radius(radius, 0.25)), n=9900, alpha=ALPHA)


def test_a_confidence_sequence_would_take_more_votes():
    """Robbins' with a uniform prior, where all votes are hits: (n + 1) p^n <= alpha / 2."""
    share, n = SHARES[-1], np.arange(1, 2000)
    sequence = int(n[np.log(n + 1) + n * np.log(share) <= np.log(ALPHA / 2)][0])
    rule = make_rule(SHARES, n=9900, alpha=ALPHA)
    rounds = next(n for n, enough in zip(rule.rounds, rule.enough[:, -1], strict=True) if enough <= n)
    assert (rounds, sequence) == (448, 609)
