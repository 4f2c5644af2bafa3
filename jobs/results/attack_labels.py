"""Attacks told apart: one name may stand for several recipes, whose numbers must not be averaged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from robustlib.settings import AUDIT, CERTIFY, ON_ALL
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job
from robustq.jobs.text.attack_words import attack_settings

WORST_CASE = "worst-case"  # the worst over the attacks on one model at one radius

# Their recipes differ by model, or are meant to be averaged, and do not make them others.
ALIKE = frozenset({WORST_CASE, AUDIT, CERTIFY, *ON_ALL})

Settings = Mapping[str, str]  # of an attack, in words by name
Read = Callable[[Iterable[int]], Mapping[int, Settings]]  # gives the settings of the attacks of these jobs
ATTACK_IDENTITY = ("attack", "norm", "eps", "recipe")
Identity = tuple[Any, ...]


def identity(row: Mapping[str, Any]) -> Identity:
    """What rows of the same attack at the same radius agree in; None for what the row does not have."""
    return tuple(row.get(name) for name in ATTACK_IDENTITY)


def stored_settings(db: Connection, ids: Iterable[int]) -> dict[int, Settings]:
    """The settings of these evaluations' attacks, from their specs."""
    found: dict[int, Settings] = {}
    for some in chunks(list(ids)):
        rows = db.execute(select(job.c.id, job.c.spec).where(job.c.id.in_(some)))
        found |= {id_: attack_settings(spec["attack"]) for id_, spec in rows}
    return found


def attack_labels(rows: Iterable[Mapping[str, Any]], read: Read) -> dict[Identity, str]:
    """Each attack's name, with those settings in which attacks of that name differ at some norm and radius.

    rows: each with its attack, norm, eps, recipe and job_id.  read: is called once, for a job of each recipe of those
    attacks that have several.
    """
    jobs = {identity(row): row["job_id"] for row in rows}
    recipes: dict[tuple[Any, ...], list[Identity]] = {}
    for mine in jobs:
        if mine[0] not in ALIKE:
            recipes.setdefault(mine[:3], []).append(mine)
    several = {place[:2] for place, mine in recipes.items() if len(mine) > 1}
    settings = read([id_ for mine, id_ in jobs.items() if mine[:2] in several])
    telling: dict[tuple[Any, ...], dict[str, None]] = {}
    for place, mine in recipes.items():
        if len(mine) > 1:
            names = differing([settings[jobs[one]] for one in mine])
            telling.setdefault(place[:2], {}).update(dict.fromkeys(names))
    return {mine: label(mine, telling.get(mine[:2], ()), settings.get(id_, {})) for mine, id_ in jobs.items()}


def told_apart(rows: Sequence[Mapping[str, Any]], read: Read) -> list[str]:
    """The label of each row's attack: see `attack_labels`."""
    labels = attack_labels(rows, read)
    return [labels[identity(row)] for row in rows]


def differing(settings: Sequence[Settings]) -> list[str]:
    """Names of what these do not agree in."""
    names = dict.fromkeys(name for some in settings for name in some)
    return [name for name in names if len({some.get(name) for some in settings}) > 1]


def label(attack: Identity, telling: Iterable[str], settings: Settings) -> str:
    return " ".join([str(attack[0]), *(settings[name] for name in telling if name in settings)])
