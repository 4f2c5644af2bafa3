"""Checks of several attacks against each other, from the outcomes they left: NumPy, no model needed."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from robustlib.checks.thresholds import CheckResult, check_result
from robustlib.number_text import distinct, fractions

# What uses no gradient of the model; by what broke an example too.
WITHOUT_GRADIENTS = frozenset({"clean", "corruption", "noise", "square", "spsa", "nes", "hopskipjump", "transfer"})

# What breaks images without gradients that attacks with them ought to, by the check that says so.
GRADIENT_FREE_CHECKS = {"square-beats-gradients": "square", "surrogate": "transfer"}


def across_attacks(
    names: Sequence[str],
    eps: Sequence[float | None],
    outcomes: Sequence[dict[str, np.ndarray]],
    recipes: Sequence[str] | None = None,
    one_search: Sequence[bool] | None = None,
) -> list[CheckResult]:
    """Checks of several attacks on one model over the same examples, in one norm, from their outcomes alone.

    names: of the attacks, by their place.  eps: radii; None for a minimum-norm attack.  recipes: the attacks with all
    their parameters; only what agrees in them is compared by radius.  one_search: whether an attack's radii were one
    search, by the attack's place; none was where it is None.
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
        found.append(check_result("fgsm-beats-pgd", missed.mean(), examples=index[missed]))
    return [
        *found,
        *gradient_free_successes(names, eps, outcomes, largest),
        *monotone(recipes or names, eps, broken, one_search),
    ]


def gradient_free_successes(
    names: Sequence[str], eps: Sequence[float | None], outcomes: Sequence[dict[str, np.ndarray]], largest: float | None
) -> list[CheckResult]:
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
    for check, attack in GRADIENT_FREE_CHECKS.items():
        if attack in tried or (attack == "square" and "autoattack" in tried):
            found.append(alone_result(check, (by == attack).any(0) & ~with_gradients, outcomes[0]["index"]))
    return found


def alone_result(check: str, alone: np.ndarray, index: np.ndarray) -> CheckResult:
    """One image of few is more than the share allowed, and no more than chance."""
    return check_result(check, alone.mean() if alone.sum() > 1 else 0.0, examples=index[alone])


def across_stages(names: Sequence[str], outcome: dict[str, np.ndarray]) -> list[CheckResult]:
    """The same of the attacks of one ensemble, from its own outcome: each met what the ones before it left standing.

    names: of the attacks, in turn. What those without gradients broke, no attack with gradients before them did.
    """
    by, index = outcome["broken_by"].astype(str), outcome["index"]
    first = {name: names.index(name) for name in names}
    found = []
    if first.get("pgd", len(names)) < first.get("fgsm", -1):
        found.append(check_result("fgsm-beats-pgd", (by == "fgsm").mean(), examples=index[by == "fgsm"]))
    for check, attack in GRADIENT_FREE_CHECKS.items():
        if not set(names[: first.get(attack, 0)]) - WITHOUT_GRADIENTS:
            continue
        if set(names[first[attack] :]) - WITHOUT_GRADIENTS:
            found.append(
                check_result(check, None, f"attacks with gradients come after {attack}, and may have found the same")
            )
        else:
            found.append(alone_result(check, by == attack, index))
    return found


def accuracy_rise(eps: float, accuracies: Mapping[float, float], n: int, draws: int) -> CheckResult:
    """How far robust accuracy at a radius lies above that at a smaller one, where each was searched by itself.

    accuracies: by radius, of a randomised model on n images, `draws` draws of each, by whose chance they may differ.
    """
    own, rises = accuracies[eps], [0.0]
    for radius, accuracy in accuracies.items():
        if radius < eps:
            chance = 3 * math.sqrt((own * (1 - own) + accuracy * (1 - accuracy)) / (n * draws))
            rises.append(own - accuracy - chance)
    radii, shown = distinct(list(accuracies), 4), fractions(list(accuracies.values()))
    words = ", ".join(f"{accuracy} at {radius}" for radius, accuracy in zip(radii, shown, strict=True))
    return check_result("accuracy-rises-with-eps", max(rises), words)


def monotone(
    names: Sequence[str],
    eps: Sequence[float | None],
    broken: Sequence[np.ndarray],
    one_search: Sequence[bool] | None = None,
) -> list[CheckResult]:
    """Robust accuracy must not rise with the radius. Where radii were one search it cannot, which tells nothing."""
    rises = []
    searched = [name for name, searched in zip(names, one_search or [False] * len(names), strict=True) if searched]
    for name in dict.fromkeys(name for name in names if name not in searched):
        rows = sorted(
            (radius, 1 - success.mean())
            for other, radius, success in zip(names, eps, broken, strict=True)
            if other == name and radius is not None
        )
        rises += [later - before for (_, before), (_, later) in pairwise(rows)]
    if rises:
        return [check_result("accuracy-rises-with-eps", max(0.0, *rises))]
    return (
        [check_result("accuracy-rises-with-eps", None, "the radii were one search: it cannot rise")] if searched else []
    )
