"""Checks of several attacks against each other, from the outcomes they left: NumPy, no model needed."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from robustlib.checks.limits import Finding, find
from robustlib.settings import ONE_SEARCH

# What uses no gradient of the model; by what broke an example too.
WITHOUT_GRADIENTS = frozenset({"clean", "corruption", "noise", "square", "spsa", "nes", "hopskipjump", "transfer"})


def across_attacks(
    names: Sequence[str],
    eps: Sequence[float | None],
    outcomes: Sequence[dict[str, np.ndarray]],
    recipes: Sequence[str] | None = None,
) -> list[Finding]:
    """Checks of several attacks on one model over the same examples, in one norm, from their outcomes alone.

    names: of the attacks, by their place.  eps: radii; None for a minimum-norm attack.  recipes: the attacks with all
    their parameters; only what agrees in them is compared by radius.
    """
    broken = [columns["success"] for columns in outcomes]
    index = outcomes[0]["index"]
    found = []
    largest = max((radius for radius in eps if radius is not None), default=None)
    at = {name: np.zeros(len(index), bool) for name in names}
    for name, radius, success in zip(names, eps, broken, strict=True):
        if radius == largest:
            at[name] |= success
    if "fgsm" in at and "pgd" in at:
        missed = at["fgsm"] & ~at["pgd"]
        found.append(find("fgsm-beats-pgd", missed.mean(), examples=index[missed]))
    return [*found, *beaten_gradients(names, eps, outcomes, largest), *monotone(recipes or names, eps, broken)]


def beaten_gradients(
    names: Sequence[str], eps: Sequence[float | None], outcomes: Sequence[dict[str, np.ndarray]], largest: float | None
) -> list[Finding]:
    """What only Square broke, and what only transfer did, of the attacks at the largest radius, where attacks with the
    model's gradients were among them.
    """
    here = [place for place, radius in enumerate(eps) if radius == largest]
    tried = {names[place] for place in here}
    if not tried - WITHOUT_GRADIENTS:
        return []
    by = np.stack([outcomes[place]["broken_by"].astype(str) for place in here])
    with_gradients = ~np.isin(by, ["", *WITHOUT_GRADIENTS - {"clean"}]).all(0)
    found = []
    for check, attack, ensembles in (
        ("square-beats-gradients", "square", {"autoattack"}),
        ("surrogate", "transfer", set()),
    ):
        if tried & {attack, *ensembles}:
            alone = (by == attack).any(0) & ~with_gradients
            found.append(find(check, alone.mean(), examples=outcomes[0]["index"][alone]))
    return found


def monotone(names: Sequence[str], eps: Sequence[float | None], broken: Sequence[np.ndarray]) -> list[Finding]:
    """Robust accuracy must not rise with the radius. Where radii were one search it cannot, which tells nothing."""
    rises = []
    searched = [name for name in names if name.endswith(ONE_SEARCH)]
    for name in dict.fromkeys(name for name in names if name not in searched):
        rows = sorted(
            (radius, 1 - success.mean())
            for other, radius, success in zip(names, eps, broken, strict=True)
            if other == name and radius is not None
        )
        rises += [later - before for (_, before), (_, later) in pairwise(rows)]
    if rises:
        return [find("accuracy-rises-with-eps", max(0.0, *rises))]
    return [find("accuracy-rises-with-eps", None, "the radii were one search: it cannot rise")] if searched else []
