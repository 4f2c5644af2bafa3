"""The report on a sweep: one self-contained HTML file, and its pictures as PNG files where they are wanted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from sqlalchemy import Connection

from jobs import artifacts
from jobs.engine import Store
from jobs.errors import SpecError
from jobs.page import outcomes, pictures
from jobs.page.gather import Sweep, gather
from jobs.page.parts import parts
from jobs.page.pictures import condition
from jobs.page.plot import slug
from jobs.page.render import page, sections
from jobs.query import artifact_of
from jobs.states import find_sweep

Row = dict[str, Any]


def write_report(store: Store, name: str, out: Path, figures_folder: Path | None) -> list[Path]:
    """Write the report of the latest sweep of this name, and its pictures as files where a folder is given."""
    kept: outcomes.Kept = {}
    with store.begin() as db:
        sweep_id = find_sweep(db, name)
        assert sweep_id is not None  # a name that does not exist has raised
        sweep = gather(db, sweep_id, kept)
        if not sweep.rows:
            raise SpecError(f"sweep {name!r} has no results yet: robustq drive --sweep {name} runs it")
        given = parts(db, store.artifacts, sweep, kept)
        html = page(given, sections(given))
        drawn = [] if figures_folder is None else list(figure_files(db, store.artifacts, sweep, kept))
    written = [out]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    if figures_folder is not None:
        figures_folder.mkdir(parents=True, exist_ok=True)
        for file, png in drawn:
            path = figures_folder / f"{file}.png"
            path.write_bytes(png)
            written.append(path)
    return written


def figure_files(db: Connection, root: str, sweep: Sweep, kept: outcomes.Kept) -> Iterator[tuple[str, bytes]]:
    """Pictures for papers and slides, each with its file's name: curves, trainings, confusions, attacked images."""
    from jobs import figures  # matplotlib, which the page itself does without

    shown = pictures.open_data(sweep.data, kept)
    for attack, norm, rows in curves(sweep.rows):
        yield slug("eps-curve", attack, norm), figures.eps_curve(f"{attack}, {norm}", rows)
    if sweep.trainings:
        yield "training", figures.histories(sweep.trainings)
    for row in pictures.telling(sweep.rows, ["worst-case", *pictures.attack_names(sweep.rows)]):
        found = outcomes.outcome(db, row["job_id"], len(shown.names), kept)
        named = {"clean": found.clean, condition(row): found.attacked}
        matrices = {label: matrix for label, matrix in named.items() if matrix is not None}
        names = [shown.name(k) for k in range(len(found.counts))]
        if matrices:
            yield (
                slug("confusion", row["model"]),
                figures.confusion(f"{row['model']}: confusion matrices", matrices, names),
            )
    if shown.dataset is not None:
        yield from grid_files(db, root, sweep.rows, shown, kept)


def grid_files(
    db: Connection, root: str, rows: Sequence[Row], shown: pictures.Data, kept: outcomes.Kept
) -> Iterator[tuple[str, bytes]]:
    from jobs import figures

    assert shown.dataset is not None
    for row in pictures.telling(rows, pictures.attack_names(rows)):
        sha256 = artifact_of(db, row["job_id"], "images")
        if sha256 is None:
            continue
        attacked = safetensors.numpy.load(artifacts.get(root, sha256))["x_adv"][: outcomes.SHOWN]
        found = outcomes.outcome(db, row["job_id"], len(shown.names), kept)
        clean, first = shown.dataset.images[found.index[: len(attacked)]].astype(np.float32) / 255, found.first
        captions = [(shown.name(before), shown.name(after)) for _, before, after in first[: len(attacked)]]
        title = f"{row['model']} under {condition(row)}"
        yield slug("images", row["model"]), figures.picture_grid(title, clean, attacked, captions)


def curves(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """The attacks that were run at several radii, with their rows that are to be trusted."""
    for attack, norm in dict.fromkeys((row["label"], row["norm"]) for row in rows if row["eps"] is not None):
        mine = [row for row in rows if (row["label"], row["norm"]) == (attack, norm) and row["eps"] is not None]
        mine = [row for row in mine if row["verdict"] != "fail"]
        if len({row["eps"] for row in mine}) > 1:
            yield attack, norm, mine
