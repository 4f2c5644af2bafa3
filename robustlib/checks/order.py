"""Checks of several attacks against each other, from the outcomes they left: NumPy, no model needed."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from robustlib.checks.limits import Finding, find


def across_attacks(
    names: Sequence[str], eps: Sequence[float | None], outcomes: Sequence[dict[str, np.ndarray]]
) -> list[Finding]:
    """Checks of several attacks on one model over the same examples, in one norm, from their outcomes alone.

    names: of the attacks, by their place.  eps: radii; None for a minimum-norm attack.
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
    return [*found, *square_first(names, eps, outcomes, largest), *monotone(names, eps, broken)]


def square_first(
    names: Sequence[str], eps: Sequence[float | None], outcomes: Sequence[dict[str, np.ndarray]], largest: float | None
) -> list[Finding]:
    """What only Square broke, of the attacks at the largest radius, where attacks with gradients were among them."""
    here = [
        columns
        for columns, radius, name in zip(outcomes, eps, names, strict=True)
        if radius == largest and name != "clean"
    ]
    by = np.stack([columns["broken_by"].astype(str) for columns in here]) if here else np.zeros((0, 0), str)
    tried = {name for name, radius in zip(names, eps, strict=True) if radius == largest}
    if not ({"square", "autoattack"} & tried and tried - {"square", "clean"}):
        return []
    square, other = (by == "square").any(0), ((by != "square") & (by != "")).any(0)
    alone = square & ~other
    return [find("square-beats-gradients", alone.mean(), examples=outcomes[0]["index"][alone])]


def monotone(names: Sequence[str], eps: Sequence[float | None], broken: Sequence[np.ndarray]) -> list[Finding]:
    """Robust accuracy must not rise with the radius."""
    rises = []
    for name in dict.fromkeys(names):
        rows = sorted(
            (radius, 1 - success.mean())
            for other, radius, success in zip(names, eps, broken, strict=True)
            if other == name and radius is not None
        )
        rises += [later - before for (_, before), (_, later) in pairwise(rows)]
    return [find("accuracy-rises-with-eps", max(0.0, *rises))] if rises else []
