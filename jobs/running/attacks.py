"""The attacks of an evaluation, from its spec."""

from dataclasses import replace
from functools import partial
from typing import Any

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.attacks.autoattack import Recipe
from robustlib.defences.smoothing import certify
from robustlib.settings import AUDIT, CERTIFY
from robustq.jobs.specs import AttackSpec


def recipe_of(attack: AttackSpec, eps: float | None, classes: int) -> Recipe:
    """The attacks to run at a radius: in a ball of radius 0 lies the image alone."""
    given: dict[str, Any] = {"norm": attack.norm, "eps": eps} if attack.norm else {}
    given |= attack.params
    if attack.name == AUDIT:
        raise ValueError("an audit is many attacks, of which each answers to the one before: it has no recipe")
    if attack.name == CERTIFY:
        certificate: Any = partial(certify, **attack.params)  # no attack, but its costs are counted like one's
        return Recipe(attack.recipe, [(CERTIFY, certificate)])
    if attack.name in ENSEMBLES:
        recipe = ENSEMBLES[attack.name](**given, classes=classes)
    else:
        recipe = Recipe(attack.recipe, [(attack.name, ATTACKS[attack.name].given(**given))])
    run = [(name, ATTACKS["clean"] if eps == 0 else function) for name, function in recipe.stages] * attack.restarts
    return replace(recipe, stages=run)
