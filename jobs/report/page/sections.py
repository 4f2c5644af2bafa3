"""The sections of the page, from a gathered sweep."""

import shlex
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection

from robustlib import VERSION
from robustlib.number_text import counted
from robustq.jobs.queue.status import left_words
from robustq.jobs.report.page import (
    charts,
    cost_tables,
    explanations,
    html_table,
    images,
    line_charts,
    plotly,
    result_tables,
    sentences,
)
from robustq.jobs.report.page.cache import PageCache
from robustq.jobs.report.page.html_table import Cell
from robustq.jobs.report.page.page_model import (
    Attacks,
    Checks,
    Classes,
    Confusion,
    Distrusted,
    LostOutcome,
    Page,
    Pictures,
    RadiusAnswer,
    Repeat,
    Verdict,
    WorkDone,
)
from robustq.jobs.report.page.ranking import (
    AS_THEY_ARE,
    Compare,
    RadiusRanking,
    Standing,
    headlines,
    rank_radii,
    standings,
)
from robustq.jobs.report.page.sweep_data import Sweep
from robustq.jobs.report.pictures.image_outcomes import Outcome
from robustq.jobs.report.pictures.thumbnails import Data
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.columns import PageRow
from robustq.jobs.statistics.model_pairs import Versus
from robustq.jobs.study.yaml_with_lines import write_yaml
from robustq.jobs.text.durations import duration
from robustq.jobs.text.told_specs import as_told

MOST_CONFUSIONS = 12  # whose confusion matrices are shown
MOST_CLASSES = 20  # in a confusion matrix; of more classes the likeliest mistakes are listed


def make_page(db: Connection, root: str, sweep: Sweep, cache: PageCache) -> Page:
    """The page of a sweep.

    root: the store's artifacts.  cache: what was read of outcomes and pictures before, filled by this call.
    """
    found = standings(sweep.rows, sweep.checks)

    def compare(first: Standing, second: Standing, column: str) -> Versus:
        one, other = ((s.clean_rows if column == AS_THEY_ARE else s.rows) for s in (first, second))
        return cache.versus(db, one, other, column)

    everywhere = rank_radii(found, compare)
    headline = headlines(everywhere)
    data = cache.data(sweep.data)
    order = charts.model_order(found, headline, sweep.rows)
    outcomes = [trusted_outcomes(db, place, data, cache) for place in headline]
    queries = cache.query_totals(db, [row["job_id"] for row in sweep.rows if row["attack"] != WORST_CASE])
    return Page(
        sweep=sweep,
        about=about(sweep),
        progress=work_done(sweep),
        verdict=verdict(sweep, everywhere, headline, compare),
        leaderboard=result_tables.leaderboard(found, headline) if found else None,
        curves=[
            *line_charts.radius_charts(sweep.rows, found, order),
            *charts.setting_charts(headline),
        ],
        queries=list(line_charts.query_charts(db, sweep.rows, headline, order, queries, cache)),
        tradeoff=[
            chart
            for p in headline
            for chart in (charts.tradeoff_chart(p, order), *charts.price_charts(p, sweep, order))
        ],
        attacks=Attacks(
            breakers=[charts.breakers_chart(p, seen) for p, seen in zip(headline, outcomes, strict=True) if seen],
            by_attack=result_tables.attacks_table(sweep.rows),
            distances=result_tables.distances_table(sweep.rows),
        ),
        classes=Classes(
            by_class=result_tables.classes_table(headline[0], outcomes[0], data.names) if headline else None,
            confusions=confusions(headline[0], outcomes[0], data) if headline else [],
            lost=lost_outcomes(db, headline, data, cache),
        ),
        pictures=Pictures(
            list(images.grids(db, root, picture_rows(db, sweep.rows, order, data, cache), data, cache)), data.reason
        ),
        explanations=explanations.explanations(db, root, sweep.explanations, data, cache),
        training=line_charts.training_charts(sweep.trainings, order),
        checks=Checks(
            audits=result_tables.audits_table(sweep),
            found=result_tables.checks_table(sweep),
            summary=result_tables.check_summary(sweep),
        ),
        cost=cost_tables.cost_table(sweep, queries),
        repeat=repeat(sweep, cache),
    )


def verdict(
    sweep: Sweep, everywhere: Sequence[RadiusRanking], headline: Sequence[RadiusRanking], compare: Compare
) -> Verdict:
    return Verdict(
        answers=[
            RadiusAnswer(sentences.best_sentence(p), sentences.apart_sentence(p), sentences.price_sentence(p, compare))
            for p in headline
        ],
        distrusted=[Distrusted(*words) for words in sentences.distrusted(everywhere)],
        limits=sentences.limits(sweep, headline),
        best=result_tables.best_by_radius(everywhere),
        compared=result_tables.compared_table(headline),
    )


def repeat(sweep: Sweep, cache: PageCache) -> Repeat:
    return Repeat(
        quoted=shlex.quote(sweep.name),  # readers paste it into a shell
        devices=sorted({row["device"] for row in sweep.rows}),
        versions=sorted({cost_tables.versions_text(row["versions"]) for row in sweep.rows}),
        study=study(sweep, cache),
        rows=cost_tables.all_rows_table(sweep, cache) if sweep.rows else None,
    )


def about(sweep: Sweep) -> str:
    """Data, images, time and place in one line."""
    said = [str(sweep.spec.get("dataset", ""))]
    if sweep.rows:
        latest = max(row["recorded_at"] for row in sweep.rows)
        said.append(counted(max(row["n"] for row in sweep.rows), "test image"))
        said.append(f"last result {time.strftime('%Y-%m-%d %H:%M', time.localtime(latest))}")
        said.append(f"on {'; '.join(sorted({row['device'] for row in sweep.rows}))}")
    return ", ".join(said) + f". robustq {VERSION}."


def study(sweep: Sweep, cache: PageCache) -> str:
    """The study as a file."""
    if sweep.id not in cache.studies:
        cache.studies[sweep.id] = write_yaml(as_told(without_nulls(sweep.spec)))
    return cache.studies[sweep.id]


def without_nulls(value: Any) -> Any:
    """A study without what it leaves open, as a person would write it."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def work_done(sweep: Sweep) -> WorkDone:
    done, left = sweep.work
    share = 1.0 if sweep.complete else min(done / (done + left), 0.999) if done + left else 0.0
    lines = [
        {
            "job": job["id"],
            "what": "training" if job["kind"] == "train" else job["attack"] or job["kind"],
            "model": job["model"],
            "seed": job["seed"],
            "norm": job["norm"],
            "eps": result_tables.eps_cell(job["eps"]),
            "done": f"{job['progress_done'] or 0} of {job['progress_total'] or '?'}",
            "note": job["progress_note"],
            "seconds": round(job["seconds"]),
        }
        for job in sweep.running
    ]
    time_left = "" if sweep.left_seconds is None else duration(sweep.left_seconds)
    left_behind = left_words(sweep.left_behind, sweep.name) if sweep.left_behind else ""
    running = html_table.table_of("running", "Jobs that run now", lines)
    return WorkDone(round(100 * share, 1), running, time_left, left_behind)


def trusted_outcomes(db: Connection, place: RadiusRanking, data: Data, cache: PageCache) -> dict[str, Outcome]:
    """The outcomes of the first seed of each model that is trusted at a radius, those that are there, by its name."""
    found = {
        s.shown_seed: cache.outcome(db, s.rows[0]["job_id"], len(data.names))
        for s in place.all[: 5 * MOST_CONFUSIONS]
        if s.trusted
    }
    return {model: one for model, one in found.items() if one is not None}


def lost_outcomes(db: Connection, headline: Sequence[RadiusRanking], data: Data, cache: PageCache) -> list[LostOutcome]:
    return [
        LostOutcome(s.shown_seed, result_tables.at(place), s.rows[0]["job_id"])
        for place in headline
        for s in place.all[: 5 * MOST_CONFUSIONS]
        if s.trusted and cache.outcome(db, s.rows[0]["job_id"], len(data.names)) is None
    ]


def picture_rows(
    db: Connection, rows: Sequence[PageRow], order: charts.ModelOrder, data: Data, cache: PageCache
) -> list[PageRow]:
    """The rows of which pictures are shown, of the best model first."""
    found = sorted(images.shown_rows(db, rows, data, cache), key=lambda row: order[row["model"]])
    return found[: images.MOST_GRIDS]


def confusions(place: RadiusRanking, outcomes: dict[str, Outcome], data: Data) -> list[Confusion]:
    """The confusion of the models that stand best."""
    found = []
    for model, seen in list(outcomes.items())[:MOST_CONFUSIONS]:
        pairs = [(word, m) for word, m in (("clean", seen.clean), ("attacked", seen.attacked)) if m is not None]
        names = tuple(data.name(k) for k in range(len(seen.counts)))
        where = result_tables.at(place)
        if len(names) <= MOST_CLASSES:
            matrices = [(word, toned(matrix)) for word, matrix in pairs]
            found.append(Confusion(model, where, names, matrices, None))
        else:
            lines = [line for word, matrix in pairs for line in likeliest(word, matrix, names)]
            caption = f"{model}: the likeliest mistakes, clean and at {where}"
            found.append(
                Confusion(model, where, names, [], html_table.table_of(plotly.slug("mistakes", model), caption, lines))
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


def likeliest(word: str, matrix: np.ndarray, names: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    return [
        {"images": word, "true class": names[a], "taken for": names[b], "times": int(wrong[a, b])}
        for a, b in pairs
        if wrong[a, b]
    ]
