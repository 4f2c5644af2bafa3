"""Results as trackers have them: a run for each model and seed, with settings, numbers, and its training's history."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.errors import SpecError
from robustq.jobs.results.aggregate import rows_by
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.explanations.columns import ExplanationRow
from robustq.jobs.results.explanations.rows import asks_of_explanations, explanation_rows
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.results.worst_attack import clean_row
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, job_dep, result
from robustq.jobs.text.canonical_json import canonical
from robustq.jobs.text.grid_names import grid_settings
from robustq.jobs.text.numbers import eps_text

HISTORY = ("loss", "clean_accuracy", "attacked_accuracy")
MODEL = ("dataset", "arch", "defence", "seed", "n")
NUMBERS = ("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high", "distance_median")


@dataclass
class Run:
    """One model with one seed in one sweep. settings: what was chosen.  metrics: fractions, by a name that says under
    what.  history: by name a value an epoch, from 1 on.  tags: what the numbers were made with.  at: when the last of
    them was recorded, seconds since 1970.
    """

    sweep: str
    model: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    at: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.model}, seed {self.seed}"

    @property
    def id(self) -> str:
        """A hash of what is in it: the same results are the same run, however often they are exported."""
        content = [self.sweep, self.model, self.seed, sorted(self.keys)]
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:32]


def runs_of(db: Connection, filters: Filters) -> list[Run]:
    """The runs of the results that the filters leave. Raises SpecError where there is none."""
    found: dict[tuple[str, str, int], Run] = {}
    first: dict[tuple[str, str, int], int] = {}
    rows = chosen_rows(db, filters)
    clean = {place: clean_row(mine) for place, mine in rows_by(rows, "sweep", "model", "seed").items()}
    for row in rows:
        place = (row["sweep"], row["model"], row["seed"])
        first.setdefault(place, row["job_id"])
        add(found.setdefault(place, Run(*place)), row)
    told = explanation_rows(db, filters) if asks_of_explanations(filters) else []
    for _, mine in rows_by(told, "job_id").items():
        place = (mine[0]["sweep"], mine[0]["model"], mine[0]["seed"])
        first.setdefault(place, mine[0]["job_id"])
        add_explanation(found.setdefault(place, Run(*place)), mine)
    if not found:
        raise SpecError("there is no result that the options leave: nothing was exported")
    trained = trainings(db, list(first.values()))
    for place, run in found.items():
        if place in clean:
            run.metrics["clean_accuracy"] = clean[place]["clean_accuracy"]
        if (training := trained.get(first[place])) is not None:
            add_training(run, *training)
    return list(found.values())


def add(run: Run, row: ResultRow) -> None:
    """A result's numbers, under names such as robust_accuracy/pgd/Linf/8_255."""
    run.settings |= settings_of(row)
    radius = () if row["eps"] is None else (eps_text(row["eps"]),)
    place = "/".join(plain(str(part)) for part in (row["attack"], row["norm"], *radius) if part is not None)
    while f"robust_accuracy/{place}" in run.metrics:  # the same attack with other settings
        place += "+"
    run.metrics |= {f"{name}/{place}": row[name] for name in NUMBERS if row[name] is not None}  # pyright: ignore
    add_about(run, row, place)


def add_explanation(run: Run, rows: Sequence[ExplanationRow]) -> None:
    """The means of one explanation job, under names such as top_intersection/grad-cam/Linf/8_255/noise. rows: of what
    was done to its images.
    """
    some = rows[0]
    run.settings = settings_of(some) | run.settings
    run.metrics.setdefault("clean_accuracy", some["clean_accuracy"])
    place = "/".join((plain(some["method"]), some["norm"], plain(str(eps_text(some["eps"])))))
    while f"recipe/{place}" in run.tags:  # the same method with other settings
        place += "+"
    for row in rows:
        values = {name: row[name] for name in (*EXPLANATION_MEASURES, "kept")}
        here = f"{place}/{plain(row['against'])}"
        run.metrics |= {f"{name}/{here}": value for name, value in values.items() if value is not None}
    add_about(run, some, place)


def settings_of(row: ResultRow | ExplanationRow) -> dict[str, Any]:
    base, grid = grid_settings(row["model"])
    named = {name: row[name] for name in MODEL} | {"model": base} | grid
    return {name: value for name, value in named.items() if value is not None}


def add_about(run: Run, row: ResultRow | ExplanationRow, place: str) -> None:
    """What the numbers of this place were made with."""
    run.tags |= {"device": row["device"], **{f"versions.{name}": str(value) for name, value in row["versions"].items()}}
    run.tags |= {f"recipe/{place}": row["recipe"] or "", f"verdict/{place}": row["verdict"] or ""}
    run.keys.append(row["key"])
    run.at = max(run.at, row["recorded_at"])


def plain(text: str) -> str:
    """Text that all trackers take as a part of a name."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in text)


def trainings(db: Connection, jobs: list[int]) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Spec and what else was recorded of the training that each of these jobs rests on."""
    part = job.alias("part")
    of_part = job_dep.alias("of_part")
    found: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    direct = select(job_dep.c.job_id, job.c.spec, result.c.extra).join(job, job.c.id == job_dep.c.needs_id)
    direct = direct.join(result, result.c.job_id == job.c.id).where(job.c.kind == "train")
    # A worst case rests on evaluations, which rest on the training.
    through = select(job_dep.c.job_id, part.c.spec, result.c.extra).join(
        of_part, of_part.c.job_id == job_dep.c.needs_id
    )
    through = through.join(part, part.c.id == of_part.c.needs_id).join(result, result.c.job_id == part.c.id)
    for some in chunks(jobs):
        for query in (through.where(part.c.kind == "train"), direct):
            for id_, spec, extra in db.execute(query.where(job_dep.c.job_id.in_(some))):
                found[id_] = (spec, extra or {})
    return found


def add_training(run: Run, spec: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    for name, value in spec["settings"].items():
        inner = value.items() if isinstance(value, dict) else ()
        run.settings |= {f"train.{name}.{key}": part for key, part in inner} if inner else {f"train.{name}": value}
    history = extra.get("history", [])
    run.history = {f"train/{name}": [float(epoch[name]) for epoch in history] for name in HISTORY if history}
