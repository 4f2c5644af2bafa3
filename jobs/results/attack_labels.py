"""Attacks told apart: one name may stand for several recipes, whose numbers must not be averaged."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from robustlib.settings import AUDIT, CERTIFY, ON_ALL

WORST_CASE = "worst-case"  # the worst over the attacks on one model at one radius

# Their recipes differ by model, or are meant to be averaged, and do not make them others.
ALIKE = frozenset({WORST_CASE, AUDIT, CERTIFY, *ON_ALL})
PATTERN = re.compile(
    r"[\w-]+\((?P<params>.*?)\)( x(?P<restarts>\d+))?( from (?P<source>.*?))?(, \d+ radii as one search)?"
)


@lru_cache(maxsize=4096)
def settings_of(recipe: str) -> Mapping[str, str]:
    """What a recipe (see `AttackSpec.recipe`) says by name, as words. How radii were searched is no setting."""
    found = PATTERN.fullmatch(recipe)
    if found is None:
        return {"version": recipe.partition(",")[0].partition("-")[2]}  # AutoAttack's: all that it is set by
    params = re.findall(r"(\w+)=(.*?)(?=, \w+=|$)", found["params"])
    words = {name: f"{name}={value}" for name, value in params}
    words |= {"restarts": f"restarts={found['restarts']}"} if found["restarts"] else {}
    return words | ({"source": f"from {found['source']}"} if found["source"] else {})


def told_apart(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each row's attack, with those settings in which attacks of that name differ at some norm and radius.

    rows: each with its attack, norm, eps and recipe.
    """
    recipes: dict[tuple[Any, ...], dict[str, None]] = {}
    for row in rows:
        if row["attack"] not in ALIKE:
            recipes.setdefault((row["attack"], row["norm"], row["eps"]), {})[row["recipe"] or ""] = None
    telling: dict[tuple[str, Any], dict[str, None]] = {}
    for (attack, norm, _), mine in recipes.items():
        telling.setdefault((attack, norm), {}).update(dict.fromkeys(differing([settings_of(r) for r in mine])))
    return [label(row, telling.get((row["attack"], row["norm"]), ())) for row in rows]


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of what these do not agree in."""
    names = dict.fromkeys(name for some in settings for name in some)
    return [name for name in names if len({some.get(name) for some in settings}) > 1]


def label(row: Mapping[str, Any], telling: Iterable[str]) -> str:
    settings = settings_of(row["recipe"] or "") if telling else {}
    return " ".join([row["attack"], *(settings[name] for name in telling if name in settings)])
