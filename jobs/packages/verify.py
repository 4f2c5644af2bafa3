"""The verification of a package on this machine: hashes, golden images, versions, digest. Nothing is unpickled.

`model.pt2` is hashed and never loaded, since loading one may unpickle. Loads no torch.
"""

import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.number_text import counted
from robustlib.packages.contents import PackageError
from robustlib.packages.golden import Golden, as_floats, read_golden
from robustlib.packages.manifest import CARD, INT8, ONNX, TEXT, Package, open_package, seal_of
from robustlib.packages.onnx_session import OnnxSession, check_installed, runtime_version
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.card import Card, card_of
from robustq.jobs.packages.card_text import SEALED
from robustq.jobs.text.safe_text import brief

SHA256 = re.compile(r"[0-9a-f]{64}")
OK, FAILED, NOTED = "ok", "failed", "note"
UNSURE = (
    "not compared: whoever changes a file can change the card with it, and only the digest that `robustq package` "
    "printed tells; give it as --digest HEX"
)


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is as it ought to be, and a line that says so."""

    what: str
    state: str
    line: str


@dataclass
class Verified:
    """All that was found of a package. digest: of its card, None where it cannot be read."""

    place: str
    digest: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def failed(self) -> list[Finding]:
        return [one for one in self.findings if one.state == FAILED]

    def add(self, what: str, good: bool, line: str) -> None:
        self.findings.append(Finding(what, OK if good else FAILED, line))

    def note(self, what: str, line: str) -> None:
        self.findings.append(Finding(what, NOTED, line))

    def as_data(self) -> dict[str, Any]:
        findings = [vars(one) for one in self.findings]
        return {"package": self.place, "digest": self.digest, "ok": not self.failed, "findings": findings}


def verify(place: Path, digest: str | None = None) -> Verified:
    """Look at a package with everything that can be told without running more of it than its programs.

    digest: that was printed when it was made. Raises SpecError where there is nothing at the place.
    """
    if not place.exists():
        raise SpecError(f"there is no package {place}")
    try:
        check_installed("robustq verify", "onnx", "onnxruntime")
    except ValueError as error:
        raise SpecError(str(error)) from error
    if digest is not None and not SHA256.fullmatch(digest := digest.strip().lower()):
        raise SpecError(f"--digest: expected 64 digits and letters from a to f, got {brief(digest)}")
    found = Verified(str(place))
    try:
        package = open_package(place)
    except PackageError as error:
        found.add("package", False, str(error))
        return found
    found.digest = package.digest
    look_at_digest(found, package, digest)
    changed = look_at_files(found, package)
    card = look_at_card(found, package)
    if card is not None and card.golden.file not in changed:
        look_at_programs(found, package, card, changed)
    if card is not None:
        look_at_versions(found, card)
    return found


def look_at_digest(found: Verified, package: Package, digest: str | None) -> None:
    if digest is None:
        found.note("digest", UNSURE)
        return
    same = digest == package.digest
    line = "that which was given" if same else f"{package.digest}, expected {digest}: this is another package"
    found.add("digest", same, line)


def look_at_files(found: Verified, package: Package) -> set[str]:
    """The names of files that are not what the card says."""
    for fault in package.faults:
        found.add("files", False, fault)
    if not package.faults:
        found.add(
            "files",
            True,
            counted(len(package.files), "file has the hash", "files have the hashes") + " that the card names",
        )
    return {fault.partition(":")[0] for fault in package.faults}


def look_at_card(found: Verified, package: Package) -> Card | None:
    try:
        card = card_of(package)
    except PackageError as error:
        found.add("card", False, str(error))
        return None
    sealed = [line for line in text_of(package).splitlines() if line.startswith(SEALED)]
    if not any(seal_of(package.card) in line for line in sealed):
        found.add("card", False, f"{CARD} says something else than when {TEXT}, which has its hash, was written")
    for warning in card.warnings:
        found.note("card", warning)
    return card


def text_of(package: Package) -> str:
    try:
        return package.contents.read(TEXT).decode(errors="replace")
    except PackageError:
        return ""


def look_at_programs(found: Verified, package: Package, card: Card, changed: set[str]) -> None:
    """The golden images through each program, on this machine's runtime."""
    try:
        golden = read_golden(package.read(card.golden.file), card.golden.file)
    except PackageError as error:
        found.add("golden", False, str(error))
        return
    if (n := len(golden.images)) != card.golden.n:
        found.add("golden", False, f"{card.golden.file} holds {counted(n, 'image')}, the card says {card.golden.n}")
    if sum(name in golden.logits for name in (ONNX, INT8)) != len(golden.logits) or ONNX not in golden.logits:
        found.add("golden", False, f"{card.golden.file} holds logits of {', '.join(golden.logits) or 'nothing'}")
        return
    for name, expected in golden.logits.items():
        if name in changed or name not in package.files:
            found.note("golden", f"{name} was not run: it is not the file that the card names")
            continue
        limit = card.golden.tolerance.get(name)
        if limit is None:
            found.add("golden", False, f"the card states no tolerance for {name}")
            continue
        try:
            session = OnnxSession(package.read(name), name)
            came = session(as_floats(golden.images))
        except ValueError as error:
            found.add("golden", False, str(error))
            continue
        if (names := session.class_names()) is not None and names != card.classes:
            found.add("classes", False, f"the card names them in the order {card.classes}, {name} has {names}")
        look_at_logits(found, name, golden, expected, came, limit, len(card.classes))


def look_at_logits(
    found: Verified, name: str, golden: Golden, expected: np.ndarray, came: np.ndarray, limit: float, classes: int
) -> None:
    if came.dtype.kind != "f":
        found.add("golden", False, f"{name} gives {came.dtype}, expected logits as floats")
        return
    if came.shape != expected.shape or came.shape[1] < classes:
        shapes = f"{came.shape} for {counted(classes, 'class', 'classes')}, expected {expected.shape}"
        found.add("golden", False, f"{name} gives logits of shape {shapes}")
        return
    gap = np.abs(came.astype(np.float64) - expected)
    difference = float("inf") if np.isnan(gap).any() else float(gap.max())
    # Of a program in 8 bits two logits may lie nearer to each other than its tolerance: there either class is right.
    sure = gap_of_first(expected) > 2 * limit
    other = golden.index[(came.argmax(1) != expected.argmax(1)) & sure]
    images = counted(len(golden.images), "image")
    line = f"{name}: {images}, a logit differs by {difference:.3g} or less, at most {limit:.3g}"
    classes_line = (
        f"; another class for images {', '.join(map(str, other[:10]))}" if len(other) else ", the same classes"
    )
    found.add("golden", difference <= limit and not len(other), line + classes_line)


def gap_of_first(logits: np.ndarray) -> np.ndarray:
    """By how much the largest logit of each row is above the next."""
    top = np.sort(logits, axis=1)
    return top[:, -1] - top[:, -2] if logits.shape[1] > 1 else np.full(len(logits), np.inf)


def look_at_versions(found: Verified, card: Card) -> None:
    """Which runtime made the package, and which it runs on here: another one is said, and no fault."""
    here = runtime_version()
    made = card.made_with.get("onnxruntime", "an unknown version")
    line = f"onnxruntime {here} here, on {platform.machine()}; made with {made}"
    if here != made:
        line += ": another version, which may round otherwise; the golden images say by how much"
    found.note("versions", line)
