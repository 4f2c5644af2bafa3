"""The package that is served, as its server needs it: name, digest, card, and what images it takes."""

import re
from dataclasses import dataclass
from typing import Any

from robustlib.datasets.source import Reading
from robustlib.packages.contents import PackageError
from robustlib.packages.manifest import TEXT, Package
from robustq.jobs.packages.card import card_of
from robustq.jobs.serving.answers import shape_and_names

MOST_SIDE = 2**16  # pixels: pictures of another size are brought to it
ODD = re.compile(r"[^A-Za-z0-9._-]+")  # what a name in an address is better without


@dataclass(frozen=True)
class Facts:
    """name: in addresses.  digest: SHA-256 of the card.  card: `card.json`, as it is.  text: `card.md`, as it is.

    image: shape of an image, (C, H, W).  classes: their names, in order.  reading: how pictures of the data set were
    brought to that shape.
    """

    name: str
    digest: str
    card: bytes
    text: bytes
    image: tuple[int, int, int]
    classes: list[str]
    reading: Reading

    @property
    def resizes(self) -> bool:
        """Whether the card says that pictures of another size are resized or cut."""
        return self.reading.size is not None or self.reading.crop is not None


def facts_of(package: Package) -> Facts:
    """What a server says of a package. Raises PackageError for a card that is none."""
    image, classes = shape_and_names(package)
    card = card_of(package)
    name = ODD.sub("-", card.name).strip("-.") or "model"
    reading = reading_of(card.preprocessing.reading)
    return Facts(name, package.digest, package.card_bytes, package.read(TEXT), image, classes, reading)


def reading_of(said: dict[str, Any]) -> Reading:
    """How pictures are read, as a card says it in JSON. Raises PackageError for what it cannot mean."""
    given, crop, turned = said.get("size"), said.get("crop"), said.get("exif_transpose", False)
    size: Any = tuple(given) if isinstance(given, list | tuple) and len(given) == 2 else given
    sides = [*(size if isinstance(size, tuple) else (size,)), crop]
    if not isinstance(turned, bool) or any(side is not None and not is_side(side) for side in sides):
        raise PackageError(f"it is no card of this format: preprocessing.reading: {str(said)[:120]}")
    return Reading(size=size, crop=crop, exif_transpose=turned)


def is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_SIDE
