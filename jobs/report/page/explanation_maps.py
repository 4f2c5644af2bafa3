"""The maps that explanations kept, as pictures: each image with what was done to it, and what its map became."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from robustlib.metrics import CLEAN
from robustq.jobs.errors import ArtifactError, SpecError
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.images import Missing
from robustq.jobs.report.pictures import attribution_pictures as pictures
from robustq.jobs.report.pictures.thumbnails import Data
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.stability import MAIN, in_order
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.store.explanations.maps import KeptMaps, kept_maps
from robustq.jobs.store.explanations.measures import measures_of
from robustq.jobs.text.numbers import eps_text

MOST_IMAGES = 8  # of a grid


def kept_grid(
    db: Connection, root: str, job: list[ExplanationRow], data: Data, cache: PageCache, apart: Sequence[str]
) -> pictures.MapGrid | Missing | None:
    """`grid_of`, drawn once; what is lost is looked for again."""
    key = (job[0]["job_id"], title_of(job[0], apart), data.names)
    if key not in cache.maps:
        found = grid_of(db, root, job, data, apart)
        if not isinstance(found, pictures.MapGrid):
            return found
        cache.maps[key] = found
    return cache.maps[key]


def title_of(row: ExplanationRow, apart: Sequence[str]) -> str:
    return f"{row['method']} of {row['model']}, {row['norm']} {eps_text(row['eps'])}{besides(row, apart)}"


def grid_of(
    db: Connection, root: str, job: list[ExplanationRow], data: Data, apart: Sequence[str]
) -> pictures.MapGrid | Missing | None:
    """The maps that a job kept, as pictures; None where it kept none."""
    found = maps_of(db, root, job, data, apart)
    if not isinstance(found, MapsFound):
        return found
    signed = pictures.is_signed(found.kept.maps)
    images = [
        pictures.explained_image(
            index,
            found.labels[place],
            {name: values[place] for name, values in found.kept.images.items()},
            {name: values[place] for name, values in found.kept.maps.items()},
            found.common[place],
            found.classes[place],
            signed=signed,
        )
        for place, index in enumerate(found.kept.index.tolist())
    ]
    return pictures.MapGrid(found.title, tuple(images), pictures.legend(signed=signed), pictures.change_legend())


@dataclass(frozen=True)
class MapsFound:
    """Images and maps that a job kept, and of each image its class by name; by what was done to it the share of top
    pixels in common with the clean map, and what the model took it for.
    """

    title: str
    kept: KeptMaps
    labels: list[str]
    common: list[dict[str, float]]
    classes: list[dict[str, str]]


def maps_of(
    db: Connection, root: str, job: list[ExplanationRow], data: Data, apart: Sequence[str]
) -> MapsFound | Missing | None:
    """The maps that a job kept; None where it kept none. apart: columns that tell jobs of a model and method apart."""
    row = job[0]
    sha256 = artifact_of(db, row["job_id"], "maps")
    if sha256 is None:
        return None
    title = title_of(row, apart)
    again = f"robustq retry {row['job_id']}"
    order = in_order([one["against"] for one in job])
    try:
        kept, columns = kept_maps(root, sha256, order, MOST_IMAGES), measures_of(db, row["job_id"])
    except ArtifactError as error:
        return Missing(title, f"their file {sha256[:12]} is {error.reason}", again)
    except (OSError, NotImplementedError, ValueError, SpecError) as error:
        return Missing(title, f"they cannot be read ({error})", again)
    by = [
        {name: int(np.flatnonzero((columns["index"] == index) & (columns["against"] == name))[0]) for name in order}
        for index in kept.index.tolist()
    ]
    return MapsFound(
        title,
        kept,
        [data.name(int(columns["label"][rows[CLEAN]])) for rows in by],
        [{name: float(columns[MAIN][row]) for name, row in rows.items()} for rows in by],
        [{name: data.name(int(columns["prediction"][row])) for name, row in rows.items()} for rows in by],
    )


def besides(row: ExplanationRow, apart: Sequence[str]) -> str:
    """What else tells this job from others, in words."""
    words = {"target": f", {row['target']} class", "seed": f", seed {row['seed']}"}
    return "".join(words[name] for name in apart)
