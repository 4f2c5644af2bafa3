"""The report on a sweep: one self-contained HTML file, and its pictures as files where they are wanted."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from robustlib.number_text import counted
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.status import IsGone
from robustq.jobs.report.page import explanation_maps, explanations, images
from robustq.jobs.report.page.cache import PageCache, nobody_is
from robustq.jobs.report.page.images import condition
from robustq.jobs.report.page.plotly import slug
from robustq.jobs.report.page.render import render_page, render_sections
from robustq.jobs.report.page.sections import make_page
from robustq.jobs.report.page.sweep_data import Sweep, gather
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import PageRow
from robustq.jobs.store.connection import Store
from robustq.jobs.store.sweeps import find_sweep
from robustq.jobs.text.notes import LOGGER


def write_report(
    store: Store,
    name: str,
    out: Path,
    figures_folder: Path | None,
    tell: Callable[[str], None] = lambda text: None,
    forms: Sequence[str] = ("png",),
    is_gone: IsGone = nobody_is,
) -> list[Path]:
    """Write the report of the latest sweep of this name, and its pictures as files where a folder is given.

    tell: is told of what cannot be shown, in one line each.  forms: of the files: png, svg, pdf.  is_gone: see
    `PageCache`.
    """
    cache = PageCache(is_gone)
    with store.begin() as db:
        sweep_id = find_sweep(db, name)
        assert sweep_id is not None  # a name that does not exist has raised
        sweep = gather(db, sweep_id, cache)
        if not sweep.rows and not sweep.explanations:
            raise SpecError(f"sweep {name!r} has no results yet: {way_on(sweep)}")
        LOGGER.info(
            "sweep %s: %s, %s on the page",
            name, counted(len(sweep.rows), "result"), counted(len(sweep.trainings), "training"),
        )  # fmt: skip
        page = make_page(db, store.artifacts, sweep, cache)
        html = render_page(page, render_sections(page))
        drawn = [] if figures_folder is None else list(figure_files(db, store.artifacts, sweep, cache, forms))
    for grid in page.pictures.grids:
        if isinstance(grid, images.Missing):
            tell(grid.line)
    written = [out]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8")
    if figures_folder is not None:
        figures_folder.mkdir(parents=True, exist_ok=True)
        for place, form in enumerate(forms):
            for name, (_, contents) in zip(file_names([file for file, _ in drawn], form), drawn, strict=True):
                (figures_folder / name).write_bytes(contents[place])
                written.append(figures_folder / name)
    return written


def way_on(sweep: Sweep) -> str:
    """The command by which a sweep gets results."""
    name, out = shlex.quote(sweep.name), sweep.left_out
    ended = sweep.states["failed"] + sweep.states["cancelled"] - out
    waiting = sweep.total - sweep.states["done"] - ended - out
    if not ended and (waiting or not out):
        return f"robustq drive --sweep {name} runs it"
    why = [counted(ended, "job failed or was cancelled", "jobs failed or were cancelled")] if ended else []
    why += [counted(out, "job was left out of a budget", "jobs were left out of a budget")] if out else []
    again = f"robustq retry --sweep {name} queues {'it' if ended + out == 1 else 'them'}{' again' if ended else ''}"
    return f"{' and '.join(why)}: {again}"


def file_names(names: Sequence[str], form: str = "png") -> list[str]:
    """Names of picture files, each another, also where case does not tell, and none longer than file systems take."""
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        short = name.encode()[:120].decode(errors="ignore")
        unique = short if short == name and short.lower() not in found else f"{short}-{place}"
        found[unique.lower()] = f"{unique}.{form}"
    return list(found.values())


def figure_files(
    db: Connection, root: str, sweep: Sweep, cache: PageCache, forms: Sequence[str]
) -> Iterator[tuple[str, list[bytes]]]:
    """Pictures for papers and slides, each with its file's name and its content in each form: curves, trainings,
    confusions, attacked images, maps of explanations.
    """
    from robustq.jobs.report import figures  # matplotlib, which the page itself does without

    def drawn(draw: Callable[..., bytes], *args: Any) -> list[bytes]:
        return [draw(*args, form=form) for form in forms]

    data = cache.data(sweep.data)
    for attack, norm, rows in curves_of_attacks(sweep.rows):
        yield slug("eps-curve", attack, norm), drawn(figures.eps_curve, f"{attack}, {norm}", rows)
    if sweep.trainings:
        yield "training", drawn(figures.training_figure, sweep.trainings)
    for row in images.picked_rows(sweep.rows, [WORST_CASE, *images.attack_names(sweep.rows)]):
        found = cache.outcome(db, row["job_id"], len(data.names))
        if found is None:
            continue
        named = {"clean": found.clean, condition(row): found.attacked}
        matrices = {label: matrix for label, matrix in named.items() if matrix is not None}
        names = [data.name(k) for k in range(len(found.counts))]
        if matrices:
            title = f"{row['name']}: confusion matrices"
            yield slug("confusion", row["model"]), drawn(figures.confusion, title, matrices, names)
    for row in images.shown_rows(db, sweep.rows, data, cache):
        pair = images.first_images(db, root, row, data, cache)
        if not isinstance(pair, images.Pair):
            continue
        first = pair.found.first[: len(pair.attacked)]
        captions = [(data.name(before), data.name(after)) for _, before, after in first]
        pictures = drawn(figures.picture_grid, images.title(row), pair.clean, pair.attacked, captions)
        yield slug("images", row["model"]), pictures
    yield from map_figure_files(db, root, sweep, cache, forms)


def map_figure_files(
    db: Connection, root: str, sweep: Sweep, cache: PageCache, forms: Sequence[str]
) -> Iterator[tuple[str, list[bytes]]]:
    """Pictures of the maps that explanations kept."""
    from robustq.jobs.report.map_figures import maps_figure

    jobs, apart = explanations.named_jobs(sweep.explanations) if sweep.explanations else ([], [])
    for job in jobs:
        found = explanation_maps.maps_of(db, root, job, cache.data(sweep.data), apart)
        if isinstance(found, explanation_maps.MapsFound):
            captions = [
                [f"{label}", *(f"{100 * common[name]:.0f} %" for name in list(common)[1:])]
                for label, common in zip(found.labels, found.common, strict=True)
            ]
            drawn = [maps_figure(found.title, found.kept, captions, form=form) for form in forms]
            told = [f"seed-{job[0]['seed']}" if name == "seed" else f"{job[0]['target']}-class" for name in apart]
            yield slug("maps", job[0]["method"], job[0]["model"], *told), drawn


def curves_of_attacks(rows: Sequence[PageRow]) -> Iterator[tuple[str, str, list[PageRow]]]:
    """The attacks that were run at several radii, with their rows that are to be trusted."""
    for attack, norm in dict.fromkeys(
        (row["label"], row["norm"]) for row in rows if row["eps"] is not None and row["norm"]
    ):
        mine = [row for row in rows if (row["label"], row["norm"]) == (attack, norm) and row["eps"] is not None]
        mine = [row for row in mine if row["verdict"] != "fail"]
        if len({row["eps"] for row in mine}) > 1:
            yield attack, norm, mine
