"""Attacks and their surrogates in words, from their specs as JSON: reading commands do without jobs/specs.py."""

import hashlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from robustlib.addresses import is_address, public
from robustlib.settings import AUTOATTACK, EXPLAIN, TRANSFER
from robustq.jobs.text.canonical_json import canonical, without_places


def attack_settings(attack: Mapping[str, Any]) -> dict[str, str]:
    """An attack's settings in words by name, from its spec as JSON. How radii were searched is no setting.

    A spec that is stored is read as it is: a later version may refuse what it holds.
    """
    if attack["name"] == "autoattack":
        return {"version": AUTOATTACK.format(**attack["params"]).partition("-")[2]}
    if attack["name"] == EXPLAIN:
        return explanation_settings(attack["params"])
    words = {name: f"{name}={value}" for name, value in sorted(attack["params"].items()) if value is not None}
    words |= {"restarts": f"restarts={attack['restarts']}"} if attack["restarts"] > 1 else {}
    return words | (
        {"source": f"from {surrogate_words(attack.get('surrogate'))}"} if attack["name"] == TRANSFER else {}
    )


def explanation_settings(params: Mapping[str, Any]) -> dict[str, str]:
    """Settings of an explanation job in words by name, from its parameters: the method first."""
    against = [call_words(one["name"], one["params"]) for one in params["against"]]
    others = {name: f"{name}={params[name]}" for name in sorted(params.keys() - {"method", "options", "against"})}
    return {"method": call_words(params["method"], params["options"]), "against": " + ".join(against)} | others


def call_words(name: str, params: Mapping[str, Any]) -> str:
    """A function with its parameters, of which those that are not set are left out."""
    words = ", ".join(f"{each}={value}" for each, value in sorted(params.items()) if value is not None)
    return f"{name}({words})" if words else name


def surrogate_words(surrogate: Mapping[str, Any] | None) -> str:
    """What a surrogate is, from its spec as JSON, with the beginning of a hash that tells it from others of its kind,
    whatever the seed.
    """
    if surrogate is None:
        return "a network that learnt its answers"
    content = without_places({name: value for name, value in surrogate.items() if name != "train"})
    model, settings = surrogate["model"], surrogate["settings"]
    named = [model["arch"] or function_words(model["code"]), settings["objective"] if settings else None]
    return " ".join([*filter(None, named), hashlib.sha256(canonical(content).encode()).hexdigest()[:8]])


def function_words(code: Mapping[str, Any]) -> str:
    """The function that makes a user's model; of an address the end of what may be told."""
    reference = f"{code['place']}:{code['factory']}"
    if is_address(reference):
        return public(reference).rpartition(":")[2]
    return code["factory"] or PurePath(code["place"]).name
