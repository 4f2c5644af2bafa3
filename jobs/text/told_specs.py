"""Specs and studies as they may be told: without what is secret in the addresses of their models."""

from typing import Any

from robustlib.addresses import is_address, public


def as_told(data: Any) -> Any:
    """Plain data whose addresses have no name, password or query; of a spec's code an address is in two parts."""
    if isinstance(data, dict):
        told = {name: as_told(value) for name, value in data.items()}
        if is_address(reference := f"{data.get('place')}:{data.get('factory')}"):
            place, _, factory = public(reference).rpartition(":")
            told |= {"place": place, "factory": factory}
        return told
    if isinstance(data, list):
        return [as_told(value) for value in data]
    return public(data) if isinstance(data, str) and is_address(data) else data
