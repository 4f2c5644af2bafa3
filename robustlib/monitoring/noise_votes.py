"""Votes of a model over noisy copies: how many differ from the image's own class, and how near the two first are.

An attacked image often lies nearer to a boundary than clean ones do, so that noise changes its class: Roth et al. 2019,
https://arxiv.org/abs/1902.04818, whose statistic of logits an attack that knows it evades (Hosseini et al. 2019,
https://arxiv.org/abs/1907.07296). Free of torch.
"""

from collections.abc import Callable

import numpy as np

Ask = Callable[[np.ndarray], np.ndarray]


def noise_votes(ask: Ask, x: np.ndarray, *, sigma: float, copies: int, random: np.random.Generator) -> np.ndarray:
    """Votes by class over noisy copies of each image, int64, shape (B, classes).

    ask: gives logits, (B, classes).  x: images, float32 in [0, 1], shape (B, C, H, W).  sigma: of Gaussian noise, in
    units of x. Copies are not cut to [0, 1].
    """
    votes = None
    for _ in range(copies):
        logits = ask(x + np.float32(sigma) * random.standard_normal(x.shape, dtype=np.float32))
        if votes is None:
            votes = np.zeros(logits.shape, np.int64)
        votes[np.arange(len(x)), logits.argmax(axis=1)] += 1
    if votes is None:
        raise ValueError(f"noise_votes: expected at least one copy, got {copies}")
    return votes


def disagreement(votes: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The share of votes for another class than the image's own, shape (B,). label: those, (B,)."""
    return 1 - votes[np.arange(len(votes)), label] / votes.sum(axis=1)


def vote_margin(votes: np.ndarray) -> np.ndarray:
    """By how much the share of the first class lies above that of the second, shape (B,); 1 where there is but one."""
    if votes.shape[1] == 1:
        return np.ones(len(votes))
    second, first = np.sort(votes, axis=1)[:, -2:].T
    return (first - second) / votes.sum(axis=1)
