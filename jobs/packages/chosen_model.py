"""The model that is to be packaged: by the options of `robustq attack`, or by the number of a job."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from robustlib.settings import EXPLAIN
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.dependencies import weights_of
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.specs import DataRef, EvalSpec, ModelSpec, TrainSpec, WorstSpec, parse
from robustq.jobs.store.schema import job, result, sweep_job
from robustq.jobs.submission.plan import data_words, subject_of
from robustq.jobs.submission.study_sources import resolve_model

LISTED = '`robustq sql "SELECT id, kind, attack FROM job"`'


@dataclass(frozen=True)
class Chosen:
    """A model with its weights and data. train: key of the training that made them, None where they are given.

    weights: the hash of those that it made.  dataset: the data set in words.  seed: of fresh weights.
    evaluation: number of the evaluation that was named, None where none was.
    """

    name: str
    model: ModelSpec
    data: DataRef
    seed: int
    dataset: str
    train: str | None = None
    weights: str | None = None
    evaluation: int | None = None

    @property
    def subject(self) -> str:
        """What all its evaluations in a store share."""
        return subject_of(self.data, self.model, self.train)


def model_by_options(options: dict[str, Any]) -> Chosen:
    """The model that `robustq attack` would attack with these options."""
    resolved = resolve_model(options)
    (label,) = resolved.models
    return Chosen(label, resolved.models[label], resolved.data, 0, data_words(resolved, trained=False))


def model_by_job(db: Connection, number: int) -> Chosen:
    """The network that a training made, or that an evaluation judged. Raises SpecError where there is none."""
    row = db.execute(select(job.c.kind, job.c.spec, job.c.state, job.c.dataset, job.c.key).where(job.c.id == number))
    found = row.mappings().one_or_none()
    if found is None:
        raise SpecError(f"job {number}: there is none; {LISTED} lists those there are")
    if found["state"] != "done" or found["kind"] not in ("train", "eval", "worst"):
        what = f"it is {found['state']}" if found["state"] != "done" else f"it is of kind {found['kind']}"
        raise SpecError(f"job {number}: expected a finished training or evaluation, {what}")
    name = db.execute(select(sweep_job.c.model).where(sweep_job.c.job_id == number).limit(1)).scalar_one()
    spec = parse(found["spec"])
    if isinstance(spec, TrainSpec):
        weights = artifact_of(db, number, "weights")
        return Chosen(name, spec.model, spec.data, spec.seed, found["dataset"], found["key"], weights)
    if isinstance(spec, WorstSpec):
        return model_by_job(db, lowest_of(db, spec))
    assert isinstance(spec, EvalSpec)  # by its kind
    given = weights_of(db, [number]).get(number, {})
    weights = given.get(spec.train or "")
    judged = None if spec.attack.name == EXPLAIN else number  # of explanations there is no accuracy to attack again
    return Chosen(name, spec.model, spec.data, spec.seed, found["dataset"], spec.train, weights, judged)


def lowest_of(db: Connection, spec: WorstSpec) -> int:
    """The evaluation of a worst case with the lowest robust accuracy, of those at its own radius if there are any."""
    rows = db.execute(
        select(job.c.id, job.c.eps, result.c.robust_accuracy)
        .join(result, result.c.job_id == job.c.id)
        .where(job.c.key.in_(spec.evals))
    ).all()
    here = [row for row in rows if row.eps == spec.eps] or list(rows)
    return min(here, key=lambda row: row.robust_accuracy).id
