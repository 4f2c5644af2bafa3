"""The format of a bundle: a ZIP archive of plain files with a manifest of their hashes, read without trust.

manifest.json            format, versions, what the sweep is called, SHA-256 and size of every other file
study.json               the study, as it was submitted
jobs.jsonl               a line a finished job: its spec, key, result, checks, and which files are its own
results.csv              the rows for people, which follow from jobs.jsonl
outcomes/KEY.csv         what became of each example
artifacts/HASH           weights that trainings left, as safetensors
files/HASH/NAME          weights that the study names; its ONNX files and packages, by what jobs know them by
code/HASH/PATH.py        source of the study's own models, by the hash of all that one imports from beside it
"""

import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustlib.hashing import file_hash
from robustq.jobs.errors import SpecError

FORMAT = 1
MANIFEST, STUDY, JOBS, RESULTS = "manifest.json", "study.json", "jobs.jsonl", "results.csv"
HASH, PART = "[0-9a-f]{64}", r"[\w-][\w. -]*"
NAMES = re.compile(
    rf"{re.escape(MANIFEST)}|{re.escape(STUDY)}|{re.escape(JOBS)}|{re.escape(RESULTS)}"
    rf"|outcomes/{HASH}\.csv|artifacts/{HASH}|files/{HASH}/{PART}|code/{HASH}/({PART}/)*{PART}\.py"
)
PLAIN = (".json", ".jsonl", ".csv", ".py")  # what is worth packing
DAY = (1980, 1, 1, 0, 0, 0)  # of every member: a bundle's bytes tell nothing but its content
MOST_BYTES = 2 * 2**30  # unpacked
MOST_MEMBERS, MOST_MANIFEST = 200_000, 64 * 2**20

BROKEN = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, zlib.error)  # of reading a member

Hash = str
Content = bytes | Path  # what a member is made of


class Sealed(BaseModel):
    """A file's hash and size."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: str = Field(pattern=f"^{HASH}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a bundle says of itself. states: the sweep's jobs by state; finished ones alone are in it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[1]
    robustq: str
    kernel: str
    sweep: str
    states: dict[str, int]
    files: dict[str, Sealed]


class Refused(SpecError):
    """A file that is no bundle, or one that is not to be unpacked."""


def write(path: Path, about: Mapping[str, Any], members: Mapping[str, Content]) -> Hash:
    """Write the members with their manifest; returns the manifest's hash, which tells the bundle from every other.

    about: of the manifest all but `files`. The same members give the same bytes.
    """
    files = {}
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(members):
            if not NAMES.fullmatch(name):
                raise SpecError(f"{name}: expected names of letters, digits, '.', '_', '-' and spaces: give it another")
            files[name] = add(archive, name, members[name])
        manifest = Manifest(format=FORMAT, files=files, **about).model_dump(mode="json")
        text = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
        add(archive, MANIFEST, text)
    return hashlib.sha256(text).hexdigest()


def add(archive: zipfile.ZipFile, name: str, content: Content) -> Sealed:
    """One member, the same bytes whenever it is written."""
    info = zipfile.ZipInfo(name, DAY)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED if name.endswith(PLAIN) else zipfile.ZIP_STORED
    info.file_size = content.stat().st_size if isinstance(content, Path) else len(content)
    digest, size = hashlib.sha256(), 0
    source = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
    with source, archive.open(info, "w") as out:
        while block := source.read(2**20):
            digest.update(block)
            size += len(block)
            out.write(block)
    return Sealed(sha256=digest.hexdigest(), bytes=size)


class Bundle:
    """An open bundle. Nothing of it has been believed but that its members may be read."""

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES):
        """Raises Refused for what is no bundle, or holds what none does."""
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise Refused(f"{path} is no bundle: {error}") from error
        try:
            self.members = self.looked_at(most_bytes)
            text = self.read(MANIFEST)
            self.fingerprint = hashlib.sha256(text).hexdigest()
            self.manifest = self.manifest_of(text)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.archive.close()

    def looked_at(self, most_bytes: int) -> dict[str, zipfile.ZipInfo]:
        """The members by name, before any is unpacked: no path but ours, no links, no more bytes than allowed."""
        found: dict[str, zipfile.ZipInfo] = {}
        infos = self.archive.infolist()
        if len(infos) > MOST_MEMBERS:
            raise self.refused(f"it has {len(infos)} members, expected at most {MOST_MEMBERS}")
        for info in infos:
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise self.refused(f"its member {name!r} is a link or no file")
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name:
                raise self.refused(f"its member {name!r} leads out of its folder")
            if name != info.filename or not NAMES.fullmatch(name):
                raise self.refused(f"its member {name!r} belongs to no bundle")
            if name in found:
                raise self.refused(f"it has two members {name!r}")
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.refused(f"its member {name!r} is encrypted, or packed in a way that bundles are not")
            found[name] = info
        if (total := sum(info.file_size for info in infos)) > most_bytes:
            told = f"{total / 2**20:,.0f} MB, expected at most {most_bytes / 2**20:,.0f}"
            raise self.refused(f"it unpacks to {told}: --most-mb allows more")
        if MANIFEST not in found:
            raise Refused(f"{self.path} is no bundle: it has no {MANIFEST}")
        if found[MANIFEST].file_size > MOST_MANIFEST:
            raise self.refused(f"its {MANIFEST} has more than {MOST_MANIFEST >> 20} MB")
        return found

    def manifest_of(self, text: bytes) -> Manifest:
        try:
            data = json.loads(text)
            if isinstance(data, dict) and data.get("format") != FORMAT:
                raise self.refused(f"it has format {data.get('format')!r}, this robustq reads {FORMAT}: update robustq")
            return Manifest.model_validate(data)
        except (ValueError, RecursionError, ValidationError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(f"{self.path} is no bundle: its {MANIFEST} cannot be read") from error

    def refused(self, why: str) -> Refused:
        return Refused(f"the bundle {self.path} is refused: {why}; nothing was unpacked")

    def read(self, name: str) -> bytes:
        """The content of a member, never more than it declares. Raises Refused where it cannot be unpacked."""
        try:
            return self.archive.read(self.members[name])
        except BROKEN as error:
            raise Refused(f"the bundle {self.path} is damaged: {name} cannot be unpacked ({error})") from error

    def tampered(self) -> Iterator[tuple[str, str]]:
        """Every file that is not what the manifest says, and what became of it: changed, missing or added."""
        sealed = self.manifest.files
        for name in sorted({*sealed, *self.members} - {MANIFEST}):
            if name not in self.members:
                yield name, "missing"
            elif name not in sealed:
                yield name, "added"
            elif not self.is_whole(name, sealed[name]):
                yield name, "changed"

    def is_whole(self, name: str, sealed: Sealed) -> bool:
        digest, size = hashlib.sha256(), 0
        try:
            with self.archive.open(self.members[name]) as source:
                while block := source.read(2**20):
                    digest.update(block)
                    size += len(block)
        except BROKEN:
            return False
        return (digest.hexdigest(), size) == (sealed.sha256, sealed.bytes)

    def unpack(self, names: Iterable[str], folder: Path) -> None:
        """Write members below a folder of ours. Their names were looked at when the bundle was opened."""
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.archive.open(self.members[name]) as source, target.open("xb") as out:
                while block := source.read(2**20):
                    out.write(block)
            if file_hash(target) != self.manifest.files[name].sha256:
                raise Refused(f"the bundle {self.path} changed while it was read: {name} is another now")
