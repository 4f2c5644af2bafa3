"""The numbers that a store has of a model, for its card. Loads no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from robustlib.settings import AUDIT, CERTIFY, ON_ALL
from robustq.jobs.packages.card import AuditTold, Check, ClassAccuracy, Evaluation, Share, Training
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.results.attack_labels import WORST_CASE
from robustq.jobs.results.audits import checks_of_job
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.specs import MARKS, EvalSpec, TrainSpec
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.example_outcomes import examples_of, to_columns
from robustq.jobs.store.schema import job, result
from robustq.jobs.text.canonical_json import canonical, without_places
from robustq.jobs.text.numbers import eps_text

Outcomes = dict[str, np.ndarray]  # of an evaluation, by column


@dataclass(frozen=True)
class Stored:
    """What the store holds of a model.

    clean: on the images of the evaluation with the most.  primary: the evaluation whose images are attacked again, with
    its spec and outcomes; None where no attack within a radius was stored.  others: outcomes of all attacks at its norm
    within its radius.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    clean: Share | None = None
    by_class: list[ClassAccuracy] = field(default_factory=list)
    training: Training | None = None
    primary: Evaluation | None = None
    primary_spec: EvalSpec | None = None
    outcomes: Outcomes | None = None
    others: list[Outcomes] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The results that are not to be trusted and that a number of the card rests on, a line each."""
        audited = {one.norm for one in self.evaluations if one.kind == "audit" and one.verdict == "fail"}
        lines = []
        for one in self.evaluations:
            if one.verdict == "fail" and (one is self.primary or not self.outdone(one)):
                names = [check.name for check in one.checks if check.verdict == "fail"]
                rests_on = "an audit of the model" if one.norm in audited else "the checks of the attacks it rests on"
                lines.append(f"job {one.job} ({attack_words(one)}) failed {', '.join(names) or rests_on}")
        return lines

    def outdone(self, one: Evaluation) -> bool:
        """Whether a trusted attack at its radius, on no fewer images, left no more: its number is the model's there."""
        if one.kind not in ("attack", "worst-case") or not one.eps:
            return False
        return any(
            other.kind in ("attack", "worst-case", "audit")
            and other.verdict in ("pass", "warn")
            and (other.norm, other.eps, other.seed) == (one.norm, one.eps, one.seed)
            and other.robust.n >= one.robust.n
            and other.robust.accuracy <= one.robust.accuracy
            for other in self.evaluations
        )


def attack_words(one: Evaluation) -> str:
    eps = "" if one.eps is None else f", eps {eps_text(one.eps)}"
    return one.attack + (f", {one.norm}" if one.norm else "") + eps


def read_stored(db: Connection, chosen: Chosen, classes: Sequence[str]) -> Stored:
    """All that the store says of the model. Worst cases and certificates are among the evaluations."""
    rows = [row for some in chunks(jobs_of(db, chosen)) for row in chosen_rows(db, of_jobs(some))]
    evaluations = [told(db, row) for row in rows]
    primary = primary_of(evaluations, chosen.evaluation)
    clean, by_class = clean_numbers(db, evaluations, classes)
    training = None if chosen.train is None else training_of(db, chosen.train)
    if primary is None:
        return Stored(evaluations, clean, by_class, training)
    spec = db.execute(select(job.c.spec).where(job.c.id == primary.job)).scalar_one()
    beside = [
        one
        for one in evaluations
        if one.kind in ("attack", "audit") and one.norm == primary.norm and one.eps and one.eps <= (primary.eps or 0)
    ]
    others = [outcomes_of(db, one.job) for one in beside if one.seed == primary.seed]
    known = (EvalSpec.model_validate(spec), outcomes_of(db, primary.job), others)
    return Stored(evaluations, clean, by_class, training, primary, *known)


def jobs_of(db: Connection, chosen: Chosen) -> list[int]:
    """The evaluations and worst cases of the model; explanations are among them. Of evaluations that ask for the same,
    which changed kernels computed anew, the latest; and the one that was named.
    """
    mine = (job.c.subject == chosen.subject) & job.c.kind.in_(("eval", "worst"))
    query = select(job.c.id, job.c.kind, job.c.spec).join(result, result.c.job_id == job.c.id).where(mine)
    latest: dict[str, int] = {}
    for id_, kind, spec in db.execute(query.order_by(job.c.id)):
        latest[asked_for(spec) if kind == "eval" else str(id_)] = id_
    every = {*latest.values(), *([] if chosen.evaluation is None else [chosen.evaluation])}
    return sorted(every)


def asked_for(spec: dict[str, Any]) -> str:
    """What an evaluation was to measure, from its spec as JSON: the same whatever it was computed by."""
    attack = {name: value for name, value in spec["attack"].items() if name not in MARKS}
    content = {name: value for name, value in spec.items() if name not in EvalSpec.not_content}
    return canonical(without_places(content | {"attack": attack}))


def of_jobs(ids: Sequence[int]) -> Filters:
    return make_filters(None, {"job_id": ids})


def outcomes_of(db: Connection, number: int) -> Outcomes:
    return to_columns(examples_of(db, number))


def kind_of(row: ResultRow) -> Any:
    if row["attack"] in ON_ALL:
        return "corruption"
    return {WORST_CASE: "worst-case", CERTIFY: "certificate", AUDIT: "audit", "clean": "clean"}.get(
        row["attack"], "attack"
    )


def told(db: Connection, row: ResultRow) -> Evaluation:
    """A row as the card has it."""
    number = row["job_id"]
    kind, audit = kind_of(row), None
    if kind == "audit":
        extra = db.execute(select(result.c.extra).where(result.c.job_id == number)).scalar() or {}
        found = extra.get("audit", {})
        names = ("verdict", "cause", "naive_robust_accuracy", "adaptive_robust_accuracy")
        audit = AuditTold(**{name: found.get(name) for name in names}, tried=found.get("trials", []))  # pyright: ignore
    return Evaluation(
        kind=kind,
        job=number,
        key=row["key"],
        attack=row["attack"],
        norm=row["norm"],  # pyright: ignore[reportArgumentType]
        eps=row["eps"],
        recipe=row["recipe"],
        seed=row["seed"],
        clean=share_of(row, "clean_accuracy"),
        robust=share_of(row, "robust_accuracy"),
        distance_median=row["distance_median"],
        verdict=row["verdict"],  # pyright: ignore[reportArgumentType]
        checks=checks_told(db, number),
        audit=audit,
        seconds=row["seconds"],
        device=row["device"],
        versions=row["versions"],
        recorded_at=moment(row["recorded_at"]),
    )


def checks_told(db: Connection, number: int) -> list[Check]:
    """The checks of a job that did not pass."""
    checks = [check for check in checks_of_job(db, number) if check["verdict"] != "pass"]
    numbers = [{name: finite(check[name]) for name in ("value", "threshold")} for check in checks]
    names = Check.model_fields.keys() - {"value", "threshold"}
    return [Check(**{name: check[name] for name in names}, **own) for check, own in zip(checks, numbers, strict=True)]  # pyright: ignore


def finite(value: Any) -> float | None:
    """A number as a card has it; None for what is none, as the loss of a training that diverged."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def share_of(row: ResultRow, name: str) -> Share:
    cells: Any = row
    return Share(n=cells["n"], accuracy=cells[name], low=cells[f"{name}_low"], high=cells[f"{name}_high"])


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def primary_of(evaluations: Sequence[Evaluation], named: int | None) -> Evaluation | None:
    """The evaluation whose images are attacked again: the one that was named; else of the norm and radius with the most
    results, then images, the one with the lowest robust accuracy.
    """
    bounded = [one for one in evaluations if one.kind in ("attack", "audit") and one.norm and one.eps]
    if named is not None:
        return next((one for one in bounded if one.job == named), None)
    places: dict[tuple[Any, ...], list[Evaluation]] = {}
    for one in bounded:
        places.setdefault((one.norm, one.eps), []).append(one)
    if not places:
        return None
    here = max(places.values(), key=lambda some: (len(some), max(one.robust.n for one in some), some[-1].recorded_at))
    attacks = [one for one in here if one.kind == "attack"] or here
    return min(attacks, key=lambda one: (-one.robust.n, one.robust.accuracy))


def clean_numbers(
    db: Connection, evaluations: Sequence[Evaluation], classes: Sequence[str]
) -> tuple[Share | None, list[ClassAccuracy]]:
    """Clean accuracy, whole and by class, from the evaluation with the most images, of equals from `clean`."""
    about = [one for one in evaluations if one.kind in ("clean", "attack", "audit")]
    if not about:
        return None, []
    most = max(about, key=lambda one: (one.clean.n, one.kind == "clean"))
    columns = outcomes_of(db, most.job)
    found = []
    for label, name in enumerate(classes):
        mine = columns["clean_correct"][columns["label"] == label]
        found.append(ClassAccuracy(name=name, n=len(mine), accuracy=float(mine.mean()) if len(mine) else None))
    return most.clean, found


def training_of(db: Connection, key: str) -> Training | None:
    """The training of this key: its settings, and the accuracies at its end on images that were held out."""
    columns = (job.c.spec, job.c.seed, result.c.extra, result.c.seconds, result.c.device, result.c.versions)
    row = db.execute(select(*columns).join(result, result.c.job_id == job.c.id).where(job.c.key == key)).one_or_none()
    if row is None:
        return None
    spec = TrainSpec.model_validate(row.spec)
    settings = spec.model_dump(mode="json")["settings"]
    shown = (row.extra or {}).get("history", [{}])[(row.extra or {}).get("best", -1)]
    names = ("clean_accuracy", "attacked_accuracy", "loss")
    return Training(
        objective=spec.settings.objective,
        settings=settings,
        seed=row.seed,
        key=key,
        validation={name: value for name in names if (value := finite(shown.get(name))) is not None},
        seconds=row.seconds,
        device=row.device,
        versions=row.versions,
    )
