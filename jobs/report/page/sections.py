"""The data of each section of the page, from a gathered sweep."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from robustlib import VERSION
from robustq.jobs.report.page import (
    charts,
    cost_tables,
    images,
    line_charts,
    plotly,
    query_charts,
    sentences,
    table,
    tables,
)
from robustq.jobs.report.page.image_outcomes import Kept, Outcome, outcome, queries
from robustq.jobs.report.page.images import Data
from robustq.jobs.report.page.ranking import Place, headlines, places, standings
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.report.page.table import Cell, Table
from robustq.jobs.study.yaml_with_lines import write_yaml
from robustq.jobs.text.told_specs import as_told

Row = dict[str, Any]

MOST_MODELS = 12  # whose confusion matrices are shown
MOST_CLASSES = 20  # in a confusion matrix; of more classes the likeliest mistakes are listed


@dataclass(frozen=True)
class Confusion:
    """How a model mistakes classes, clean and attacked: matrices, or of many classes the likeliest mistakes."""

    model: str
    where: str
    names: tuple[str, ...]
    matrices: list[tuple[str, list[list[Cell]]]]
    mistakes: Table | None


def parts(db: Connection, root: str, sweep: Sweep, kept: Kept) -> dict[str, Any]:
    """Everything that templates name.

    root: the store's artifacts.  kept: what was read of outcomes and pictures before, filled by this call.
    """
    found = standings(sweep.rows, sweep.checks)
    everywhere = places(found)
    headline = headlines(everywhere)
    shown = images.open_data(sweep.data, kept)
    order = charts.looks(found, headline, sweep.rows)
    outcomes = [read_outcomes(db, place, shown, kept) for place in headline]
    asked = queries(db, [row["job_id"] for row in sweep.rows if row["attack"] != "worst-case"], kept)
    return {
        "sweep": sweep,
        "about": about(sweep),
        "devices": sorted({row["device"] for row in sweep.rows}),
        "versions": sorted({cost_tables.versions_text(row["versions"]) for row in sweep.rows}),
        "progress": progress(sweep),
        "answers": [(sentences.answer(p), sentences.apart(p), sentences.price(p)) for p in headline],
        "distrusted": sentences.distrusted(everywhere),
        "limits": sentences.limits(sweep, headline),
        "best": tables.best_by_radius(everywhere),
        "leaderboard": tables.leaderboard(found, headline) if found else None,
        "curves": list(line_charts.curves(sweep.rows, found, order)),
        "spent": list(query_charts.spent(db, sweep.rows, headline, order, asked, kept)),
        "tradeoffs": [
            chart for p in headline for chart in (charts.tradeoff(p, order), *charts.prices(p, sweep, order))
        ],
        "breakers": [charts.breakers(p, seen) for p, seen in zip(headline, outcomes, strict=True) if seen],
        "by_attack": tables.by_attack(sweep.rows),
        "distances": tables.distances(sweep.rows),
        "classes": tables.classes(headline[0], outcomes[0], shown.names) if headline else None,
        "confusions": confusions(headline[0], outcomes[0], shown) if headline else [],
        "lost": lost_outcomes(db, headline, shown, kept),
        "grids": list(images.grids(db, root, telling(sweep.rows, order), shown, kept)),
        "shown": shown,
        "histories": line_charts.histories(sweep.trainings, order),
        "audits": tables.audits(sweep),
        "check_summary": tables.check_summary(sweep),
        "checks": tables.checks(sweep),
        "costs": cost_tables.costs(sweep, asked),
        "rows": cost_tables.every_row(sweep, kept) if sweep.rows else None,
        "quoted": shlex.quote(sweep.name),  # readers paste it into a shell
        "study": study(sweep, kept),
    }


def about(sweep: Sweep) -> str:
    """Data, images, time and place in one line."""
    said = [str(sweep.spec.get("dataset", ""))]
    if sweep.rows:
        latest = max(row["recorded_at"] for row in sweep.rows)
        said.append(f"{max(row['n'] for row in sweep.rows)} test images")
        said.append(f"last result {time.strftime('%Y-%m-%d %H:%M', time.localtime(latest))}")
        said.append(f"on {'; '.join(sorted({row['device'] for row in sweep.rows}))}")
    return ", ".join(said) + f". robustq {VERSION}."


def study(sweep: Sweep, kept: Kept) -> str:
    """The study as a file."""
    if ("study", sweep.id) not in kept:
        text = write_yaml(as_told(without_nulls(sweep.spec)))
        kept["study", sweep.id] = text
    return kept["study", sweep.id]


def without_nulls(value: Any) -> Any:
    """A study without what it leaves open, as a person would write it."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def progress(sweep: Sweep) -> dict[str, Any]:
    """How far the work is, in percent of its estimated cost, and what runs."""
    done, left = sweep.work
    share = 1.0 if sweep.complete else min(done / (done + left), 0.999) if done + left else 0.0
    lines = [
        {
            "job": job["id"],
            "what": "training" if job["kind"] == "train" else job["attack"] or job["kind"],
            "model": job["model"],
            "norm": job["norm"],
            "eps": tables.eps_cell(job["eps"]),
            "done": f"{job['progress_done'] or 0} of {job['progress_total'] or '?'}",
            "note": job["progress_note"],
            "seconds": round(job["seconds"]),
        }
        for job in sweep.running
    ]
    return {"percent": round(100 * share, 1), "running": table.plain("running", "Jobs that run now", lines)}


def read_outcomes(db: Connection, place: Place, shown: Data, kept: Kept) -> dict[str, Outcome]:
    """The outcomes of the first seed of each model that is trusted at a radius, those that are there."""
    found = {
        s.model: outcome(db, s.rows[0]["job_id"], len(shown.names), kept)
        for s in place.all[: 5 * MOST_MODELS]
        if s.trusted
    }
    return {model: one for model, one in found.items() if one is not None}


def lost_outcomes(db: Connection, headline: Sequence[Place], shown: Data, kept: Kept) -> list[tuple[str, str, int]]:
    """Model, place and job of the outcomes that should be told of and that the store lost."""
    return [
        (s.model, tables.at(place), s.rows[0]["job_id"])
        for place in headline
        for s in place.all[: 5 * MOST_MODELS]
        if s.trusted and outcome(db, s.rows[0]["job_id"], len(shown.names), kept) is None
    ]


def telling(rows: Sequence[Row], order: charts.Places) -> list[Row]:
    """The rows of which pictures are shown, of the best model first."""
    found = sorted(images.telling(rows, images.attack_names(rows)), key=lambda row: order[row["model"]])
    return found[: images.MOST_MODELS]


def confusions(place: Place, outcomes: dict[str, Outcome], shown: Data) -> list[Confusion]:
    """The confusion of the models that stand best."""
    found = []
    for model, seen in list(outcomes.items())[:MOST_MODELS]:
        pairs = [(word, m) for word, m in (("clean", seen.clean), ("attacked", seen.attacked)) if m is not None]
        names = tuple(shown.name(k) for k in range(len(seen.counts)))
        where = tables.at(place)
        if len(names) <= MOST_CLASSES:
            matrices = [(word, toned(matrix)) for word, matrix in pairs]
            found.append(Confusion(model, where, names, matrices, None))
        else:
            lines = [line for word, matrix in pairs for line in likeliest(word, matrix, names)]
            caption = f"{model}: the likeliest mistakes, clean and at {where}"
            found.append(
                Confusion(model, where, names, [], table.plain(plotly.slug("mistakes", model), caption, lines))
            )
    return found


def toned(matrix: np.ndarray) -> list[list[Cell]]:
    """Counts with a ground by their share of the true class."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return [
        [
            Cell(str(count) if count else "", float(share), f"tone{round(10 * share)}" if count else "")
            for count, share in zip(*lines, strict=True)
        ]
        for lines in zip(matrix.tolist(), shares.tolist(), strict=True)
    ]


def likeliest(word: str, matrix: np.ndarray, names: Sequence[str], most: int = 10) -> list[Row]:
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [
        {"images": word, "true class": names[a], "taken for": names[b], "times": int(wrong[a, b])}
        for a, b in pairs
        if wrong[a, b]
    ]
