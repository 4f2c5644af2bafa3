"""A package by its card: `card.json` names every file with its hash, and its own hash stands for the whole."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustlib.packages.contents import NAME, SUFFIX, Contents, PackageError, open_contents, shown

CARD, TEXT, SCHEMA = "card.json", "card.md", "card.schema.json"
ONNX, INT8, PROGRAM, WEIGHTS, GOLDEN = (
    "model.onnx", "model.int8.onnx", "model.pt2", "model.safetensors", "golden.npz",
)  # fmt: skip
FORMAT = "robustq-package/1"
MOST_CARD_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Package:
    """A package that was opened. card: the whole of it, as plain data.  files: hash and bytes by name."""

    contents: Contents
    card_bytes: bytes
    card: dict[str, Any]
    files: dict[str, tuple[str, int]]

    @property
    def digest(self) -> str:
        """SHA-256 of the card, and so of all that it names."""
        return hashlib.sha256(self.card_bytes).hexdigest()

    @property
    def network(self) -> dict[str, Any]:
        """What the network is: see jobs/packages/card.py."""
        found = self.card.get("network")
        return found if isinstance(found, dict) else {}

    @property
    def has_gradients(self) -> bool:
        """Whether the network behind the program can be built here: its architecture is one by name."""
        return isinstance(self.network.get("arch"), str)

    def read(self, name: str) -> bytes:
        """A file that is what the card says. Raises PackageError for any other."""
        if name not in self.files:
            raise PackageError(f"{self.contents.place}: the card names no {name}")
        data = self.contents.read(name)
        if hashlib.sha256(data).hexdigest() != self.files[name][0]:
            raise PackageError(
                f"{self.contents.place}: {name} is not the file that the card names: `robustq verify` says what else"
            )
        return data

    @cached_property
    def faults(self) -> list[str]:
        """What is not as the card says, a line each."""
        names, found = self.contents.sizes.keys() - {CARD}, []
        found += [f"{name}: missing" for name in sorted(self.files.keys() - names)]
        found += [f"{name}: the card does not name it" for name in sorted(names - self.files.keys())]
        for name in sorted(self.files.keys() & names):
            sha256, size = self.files[name]
            if self.contents.sizes[name] != size:
                found.append(f"{name}: {self.contents.sizes[name]} bytes, the card says {size}")
                continue
            try:
                data = self.contents.read(name)
            except PackageError as error:
                found.append(f"{name}: {error}")
                continue
            if hashlib.sha256(data).hexdigest() != sha256:
                found.append(f"{name}: another content than the card's, by its hash")
        return found

    def check_files(self) -> None:
        """Raises PackageError where a file is missing, changed, or one too many."""
        if self.faults:
            raise PackageError(f"{self.contents.place} is not what its card says: {'; '.join(self.faults)}")


def seal_of(card: dict[str, Any]) -> str:
    """SHA-256 of all that a card says but its list of files: `card.md` has it, whose hash stands in that list."""
    said = {name: value for name, value in card.items() if name != "files"}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_package(place: Path) -> bool:
    """Whether a path is meant as a package: a ZIP archive by its name, or a folder with a card."""
    return place.suffix == SUFFIX or is_package_folder(place)


def is_package_folder(place: Path) -> bool:
    try:
        return (place / CARD).is_file()
    except OSError:  # of a name that is too long
        return False


def is_file_alone(place: Path) -> bool:
    """Whether a path is meant as a model that needs no function to build it: a package, or an ONNX file."""
    return place.suffix == ".onnx" or is_package(place)


def open_package(place: Path) -> Package:
    """The package with its card read; its files are looked at by their names and sizes alone. Raises PackageError."""
    contents = open_contents(place)
    if CARD not in contents.sizes:
        raise PackageError(f"{place} is no package: it has no {CARD}, which `robustq package` writes")
    if contents.sizes[CARD] > MOST_CARD_BYTES:
        raise PackageError(f"{place}: {CARD} has {contents.sizes[CARD]} bytes: expected at most {MOST_CARD_BYTES}")
    data = contents.read(CARD)
    try:
        card = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{place}: {CARD} is no JSON ({str(error)[:80]})") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        came = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise PackageError(f"{place}: expected a card of format {FORMAT!r}, got {str(came)[:80]!r}")
    return Package(contents, data, card, files_of(place, card.get("files")))


def files_of(place: Path, listed: Any) -> dict[str, tuple[str, int]]:
    files: dict[str, tuple[str, int]] = {}
    for name, entry in (listed if isinstance(listed, dict) else {}).items():
        sha256, size = (entry.get("sha256"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
        if not isinstance(sha256, str) or not isinstance(size, int) or name == CARD or not NAME.fullmatch(name):
            raise PackageError(f"{place}: expected the card to name files as {{sha256, bytes}}, got {shown(name)}")
        files[name] = (sha256, size)
    if not files:
        raise PackageError(f"{place}: the card names no files")
    return files


def package_hash(place: Path) -> str:
    """SHA-256 of what a package computes: the programs that answer, and the network that gradients go through.

    Of its numbers and words, which say what was measured of it, nothing is in it. Raises PackageError for a package
    whose files are not what its card says.
    """
    package = open_package(place)
    package.check_files()
    kept = {name: package.files[name][0] for name in (ONNX, INT8, WEIGHTS) if name in package.files}
    text = json.dumps([package.network, kept], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
