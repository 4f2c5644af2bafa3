"""The sentences of a card: first what a reader must know, last what no number says."""

from collections.abc import Sequence
from pathlib import PurePath

from robustq.jobs.packages.card import Program
from robustq.jobs.packages.stored_numbers import Stored


def warnings(stored: Stored) -> list[str]:
    """What stands first on the card."""
    found = [f"Not trusted: {line}. Its robust accuracy is not to be quoted." for line in stored.failed]
    if not stored.evaluations:
        found.append(
            "Not evaluated: no evaluation of this model is stored. Nothing here says what it does under attack."
        )
    elif stored.primary is None:
        found.append(
            "Not attacked within a radius: the store has no such evaluation, and the program was not attacked either."
        )
    return found


def not_said(stored: Stored, programs: Sequence[Program]) -> list[str]:
    """What the numbers of a card do not say."""
    found = []
    if stored.evaluations:
        found += [
            "Attacks bound robust accuracy from above: a stronger attack may leave less.",
            "The numbers are of these images, norms and radii alone, not of other data, larger radii or other changes.",
            "Attacks with gradients were made on the network; of the program they are transferred, and Square with its "
            "queries is what was tried on the program itself.",
            "A program that is right on more attacked images than its network is not more robust: they were made for "
            "the network.",
        ]
    if any(one.precision == "int8" for one in programs):
        found.append(
            "In a study, `options: {program: int8}` attacks the program in 8 bits itself, by the network's gradient."
        )
    if any(one.kind == "certificate" for one in stored.evaluations):
        found.append("Certificates are of the smoothed network by its own votes, not of one answer of the program.")
    found += [
        "Another machine, provider or version of the runtime rounds otherwise: `robustq verify` says by how much.",
        "Latency is of this machine, with the threads that are stated.",
        "The golden images are the data set's, and so is their licence.",
    ]
    return found


def colours(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")


def data_name(words: str) -> str:
    """The data set as its study names it, without the folders that it lies in."""
    place, bracket, rest = words.partition(" (")
    kind, colon, path = place.partition(":")
    return f"{kind}{colon}{PurePath(path).name}{bracket}{rest}" if colon else words
