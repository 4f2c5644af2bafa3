"""Grids of attacked images beside the clean ones, and the reasons why some cannot be shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from robustlib.settings import AUDIT, CERTIFY
from robustq.jobs.errors import ArtifactError
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.pictures.image_outcomes import FIRST_IMAGES, Outcome
from robustq.jobs.report.pictures.thumbnails import Data, ImageTriple, draw
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import PageRow
from robustq.jobs.results.rows import artifact_of, with_artifact
from robustq.jobs.store.attacked_images import attacked_images
from robustq.jobs.text.numbers import eps_text

MOST_GRIDS = 12  # with pictures: each takes about a hundred kilobytes with images of the largest side


@dataclass(frozen=True)
class Grid:
    """The first images of one model under one attack.  magnified: factor of the difference, which is put on grey; None
    where there is none.
    """

    title: str
    magnified: float | None
    images: tuple[ImageTriple, ...]


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


def grids(db: Connection, root: str, rows: Sequence[PageRow], data: Data, cache: PageCache) -> Iterator[Grid | Missing]:
    """The pictures of these rows, those that kept any."""
    for row in rows:
        found = grid(db, root, row, data, cache)
        if found is not None:
            yield found


def grid(db: Connection, root: str, row: PageRow, data: Data, cache: PageCache) -> Grid | Missing | None:
    drawn = cache.drawn.get((row["job_id"], data.names))
    if drawn is None:
        pair = first_images(db, root, row, data, cache)
        if not isinstance(pair, Pair):
            return pair
        drawn = cache.drawn[row["job_id"], data.names] = draw(pair.clean, pair.attacked, pair.found, data)
    return Grid(title(row), drawn.magnified, drawn.images)


def first_images(db: Connection, root: str, row: PageRow, data: Data, cache: PageCache) -> Pair | Missing | None:
    """What a row kept beside what it was made from; None where it kept nothing, or the data set is not there."""
    sha256 = artifact_of(db, row["job_id"], "images")
    if sha256 is None or data.dataset is None:
        return None
    again = f"robustq retry {row['job_id']}"
    try:
        attacked = attacked_images(root, sha256, slice(FIRST_IMAGES))
    except (OSError, NotImplementedError) as error:  # the second of an address that pyarrow was built without
        return Missing(title(row), f"their file cannot be read ({error})", "")
    except ArtifactError as error:
        file = f"their file {sha256[:12]}"
        return Missing(title(row), f"{file} is {error.reason}", "" if error.reason == "unreadable" else again)
    except ValueError:
        return Missing(title(row), f"their file {sha256[:12]} is damaged", again)
    found = cache.outcome(db, row["job_id"], len(data.names))
    if found is None:
        return Missing(title(row), "their outcomes are lost", again)
    try:
        clean = data.dataset.images[found.index[: len(attacked)]].astype(np.float32) / 255
    except (OSError, ValueError, IndexError) as error:
        return Missing(title(row), f"the clean ones cannot be read ({error})", "")
    if clean.shape != attacked.shape:
        return Missing(title(row), f"they are of shape {attacked.shape}, the clean ones of {clean.shape}", "")
    return Pair(clean, attacked, found)


def title(row: PageRow) -> str:
    return f"{row['name']} under {condition(row)}"


def condition(row: PageRow) -> str:
    return f"{row['label']}, {row['norm']}, eps {eps_text(row['eps'])}"


def picked_rows(rows: Sequence[PageRow], attacks: Sequence[str]) -> Iterator[PageRow]:
    """For each model its row, of the first of these attacks that it has, at the middle one of the radii; first seed."""
    models = dict.fromkeys(row["model"] for row in rows)
    there = rows_by([row for row in rows if row["eps"]], "model", "attack")
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


def shown_rows(db: Connection, rows: Sequence[PageRow], data: Data, cache: PageCache) -> Iterator[PageRow]:
    """For each model the row whose pictures are shown: the one that `picked_rows` takes, or where none of its pictures
    is adversarial, the first of the model's rows of which one is. One whose outcomes are lost stays, and is told.
    """
    names = attack_names(rows)
    keeping = with_artifact(db, [row["job_id"] for row in rows], "images")
    attacked = rows_by([row for row in rows if row["eps"] and row["attack"] in names], "model")
    for row in picked_rows(rows, names):
        if row["job_id"] in keeping and cache.outcome(db, row["job_id"], len(data.names)) is None:
            yield row
            continue
        others = attacked[row["model"],]
        others.sort(
            key=lambda one: (one["norm"] != row["norm"], one["attack"] != row["attack"], one["seed"], one["eps"])
        )
        yield next(
            (one for one in [row, *others] if one["job_id"] in keeping and shows_adversarial(db, one, data, cache)), row
        )


def shows_adversarial(db: Connection, row: PageRow, data: Data, cache: PageCache) -> bool:
    """Whether one of the pictures that a row keeps, as far as they are shown, was misled by the attack."""
    found = cache.outcome(db, row["job_id"], len(data.names))
    kept = cache.details(db, [row["job_id"]])[row["job_id"]].spec.get("images") or FIRST_IMAGES
    return found is not None and any(before == label != after for label, before, after in found.first[:kept])


def attack_names(rows: Sequence[PageRow]) -> list[str]:
    """Attacks with a radius, the last of the study first: studies end with their strongest."""
    none = (WORST_CASE, AUDIT, CERTIFY)
    return list(dict.fromkeys(row["attack"] for row in reversed(rows) if row["eps"] and row["attack"] not in none))
