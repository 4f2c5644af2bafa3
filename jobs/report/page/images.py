"""Attacked images beside the clean ones and their difference, as small PNGs in the page."""

import base64
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import Connection

from robustlib.datasets import load
from robustlib.settings import AUDIT, CERTIFY
from robustq.jobs.errors import ArtifactError
from robustq.jobs.report.page.image_outcomes import SHOWN, Kept, Outcome, outcome
from robustq.jobs.report.page.ranking import grouped
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.specs import DataRef
from robustq.jobs.store.attacked_images import attacked_images
from robustq.jobs.text.numbers import eps_text

Row = dict[str, Any]

MOST_SIDE = 112  # of a picture on the page; larger images are shrunk to it
LOOK = 60.0  # seconds until a data set that is not there is looked for again, which may be a download
MOST_MODELS = 12  # with pictures: each takes about a hundred kilobytes with images of the largest side


@dataclass(frozen=True)
class Shown:
    """One image three ways, as data URLs, with its classes by name."""

    place: int
    clean: str
    attacked: str
    difference: str
    label: str
    before: str
    after: str

    @property
    def broken(self) -> bool:
        return self.after != self.label

    @property
    def caption(self) -> str:
        """Its outcome in words."""
        if self.before != self.label:
            return f"{self.label}, misclassified without an attack, as {self.before}"
        return f"{self.label}, misclassified as {self.after}" if self.broken else f"{self.label} ✓ robust"


@dataclass(frozen=True)
class Grid:
    """The first images of one model under one attack.  magnified: factor of the difference, which is put on grey."""

    title: str
    magnified: float
    images: tuple[Shown, ...]


@dataclass(frozen=True)
class Missing:
    """What was kept and cannot be shown.  why: in half a sentence.  again: the command that makes it again, or none."""

    title: str
    why: str
    again: str

    @property
    def line(self) -> str:
        return f"{self.title}: no pictures, {self.why}" + (f"; {self.again} makes them again" if self.again else "")


@dataclass(frozen=True)
class Pair:
    """The first images that an evaluation kept, shape (N, C, H, W), in [0, 1], and what became of them."""

    clean: np.ndarray
    attacked: np.ndarray
    found: Outcome


@dataclass(frozen=True)
class Data:
    """The data set's test split, or the reason why it cannot be shown; the classes by name, or by number without it."""

    dataset: load.Dataset | None
    reason: str
    names: tuple[str, ...]

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def open_data(ref: Row | None, kept: Kept) -> Data:
    """The data set that a sweep names, where this machine has it with the same content."""
    if ref is None:
        return Data(None, "no evaluation is done yet", ())
    spec = DataRef.model_validate(ref)
    found, looked = kept.get(("data", spec), (None, -LOOK))
    if found is None or (found.dataset is None and time.monotonic() - looked > LOOK):
        found = find_data(spec)
        kept["data", spec] = found, time.monotonic()
    return found


def find_data(ref: DataRef) -> Data:
    try:
        if load.fingerprint(ref.place, ref.split, ref.reading) != ref.sha256:
            gone = f"the data set {ref.place} on this machine is another than the one that was evaluated"
            return Data(None, gone, ())
        dataset = load.load(ref.place, ref.split, ref.reading)
    except (OSError, ValueError) as error:  # the page is about results, and those are there
        return Data(None, str(error), ())
    return Data(dataset, "", dataset.names)


def grids(db: Connection, root: str, rows: Sequence[Row], shown: Data, kept: Kept) -> Iterator[Grid | Missing]:
    """The pictures of these rows, those that kept any."""
    for row in rows:
        name = ("grid", row["job_id"], shown.names)
        if name not in kept:
            pair = first_images(db, root, row, shown, kept)
            if isinstance(pair, Missing):
                yield pair
            if not isinstance(pair, Pair):
                continue
            kept[name] = draw(pair.clean, pair.attacked, pair.found, shown)
        magnified, images = kept[name]
        yield Grid(title(row), magnified, images)


def first_images(db: Connection, root: str, row: Row, shown: Data, kept: Kept) -> Pair | Missing | None:
    """What a row kept beside what it was made from; None where it kept nothing, or the data set is not there."""
    sha256 = artifact_of(db, row["job_id"], "images")
    if sha256 is None or shown.dataset is None:
        return None
    again = f"robustq retry {row['job_id']}"
    try:
        attacked = attacked_images(root, sha256, SHOWN)
    except (OSError, NotImplementedError) as error:  # the second of an address that pyarrow was built without
        return Missing(title(row), f"their file cannot be read ({error})", "")
    except ArtifactError as error:
        file = f"their file {sha256[:12]}"
        return Missing(title(row), f"{file} is {error.reason}", "" if error.reason == "unreadable" else again)
    except ValueError:
        return Missing(title(row), f"their file {sha256[:12]} is damaged", again)
    found = outcome(db, row["job_id"], len(shown.names), kept)
    if found is None:
        return Missing(title(row), "their outcomes are lost", again)
    try:
        clean = shown.dataset.images[found.index[: len(attacked)]].astype(np.float32) / 255
    except (OSError, ValueError, IndexError) as error:
        return Missing(title(row), f"the clean ones cannot be read ({error})", "")
    if clean.shape != attacked.shape:
        return Missing(title(row), f"they are of shape {attacked.shape}, the clean ones of {clean.shape}", "")
    return Pair(clean, attacked, found)


def title(row: Row) -> str:
    return f"{row['model']} under {condition(row)}"


def condition(row: Row) -> str:
    return f"{row['label']}, {row['norm']}, eps {eps_text(row['eps'])}"


def draw(clean: np.ndarray, attacked: np.ndarray, found: Outcome, shown: Data) -> tuple[float, tuple[Shown, ...]]:
    """clean, attacked: shape (N, C, H, W), in [0, 1]."""
    difference = np.nan_to_num(attacked - clean)
    scale = 0.5 / max(float(np.abs(difference).max()), 1e-12)
    images = tuple(
        Shown(
            place,
            *(png_url(picture) for picture in (clean[place], attacked[place], 0.5 + scale * difference[place])),
            *(shown.name(label) for label in found.first[place]),
        )
        for place in range(len(attacked))
    )
    return scale, images


def png_url(image: np.ndarray) -> str:
    """An image of shape (C, H, W) in [0, 1] as a data URL."""
    levels = np.rint(np.nan_to_num(image).clip(0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    picture.thumbnail((MOST_SIDE, MOST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def telling(rows: Sequence[Row], attacks: Sequence[str]) -> Iterator[Row]:
    """For each model its row, of the first of these attacks that it has, at the middle one of the radii; first seed."""
    models = dict.fromkeys(row["model"] for row in rows)
    there = grouped([row for row in rows if row["eps"]], "model", "attack")
    for model in models:
        for attack in attacks:
            mine = there.get((model, attack))
            if mine:
                mine = sorted(
                    (row for row in mine if row["norm"] == mine[0]["norm"]), key=lambda row: (row["seed"], row["eps"])
                )
                first = [row for row in mine if row["seed"] == mine[0]["seed"]]
                yield first[(len(first) - 1) // 2]
                break


def attack_names(rows: Sequence[Row]) -> list[str]:
    """Attacks with a radius, the last of the study first: studies end with their strongest."""
    none = ("worst-case", AUDIT, CERTIFY)
    return list(dict.fromkeys(row["attack"] for row in reversed(rows) if row["eps"] and row["attack"] not in none))
