"""Stored evaluations run again in this process, and compared with what was stored: nothing is written to the store."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sqlalchemy import Connection, select

from robustq.jobs.errors import ArtifactError, RunError, SpecError
from robustq.jobs.queue.dependencies import weights_of
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.evaluation import last_curve
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.run import run
from robustq.jobs.specs import EvalSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, result
from robustq.jobs.verification import diff

Row = dict[str, Any]

EQUAL, DIFFERS = "equal", "differs"
SHOWN = ("model", "attack", "norm", "eps", "seed", "n")


def replay(
    store: Store,
    number: int,
    *,
    filters: Filters,
    job_ids: Sequence[int] = (),
    seed: int = 0,
    threads: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Run stored evaluations again: those of these numbers, or `number` drawn at random, as `seed` says.

    Each row says whether the result is equal to the bit; where it is not, on the same kind of device with the same
    versions it differs, and elsewhere it is within or changed beyond its interval, as in `diff`. Worst cases are not
    drawn: they are computed from other evaluations. Raises SpecError where there is nothing to run.
    """
    torch.set_num_threads(threads)
    last_curve.clear()  # what this process may have found before must not stand in for a run
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where drivers find users' modules too
    with store.begin() as db:
        chosen = given(db, job_ids) if job_ids else drawn(db, number, filters, seed)
    rows = []
    for i, row in enumerate(chosen):
        tell(f"{i + 1} of {len(chosen)}: job {row['job_id']}, {row['model']} under {row['attack']}")
        rows.append(again(store, row))
    return rows


def evaluations(db: Connection, filters: Filters) -> list[Row]:
    """The results that can be run again."""
    rows = chosen_rows(db, filters, (*SHOWN, "job_id"))
    runs = set(db.execute(select(job.c.id).where(job.c.kind == "eval")).scalars())
    return [row for row in rows if row["job_id"] in runs]


def drawn(db: Connection, number: int, filters: Filters, seed: int) -> list[Row]:
    rows = evaluations(db, filters)
    if not rows:
        raise SpecError("there is no evaluation to run again that the options leave")
    chosen = random.Random(seed).sample(range(len(rows)), min(number, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def given(db: Connection, job_ids: Sequence[int]) -> list[Row]:
    rows = {row["job_id"]: row for row in evaluations(db, make_filters(None, {"job_id": job_ids}))}
    for id_ in job_ids:
        if id_ not in rows:
            kind = db.execute(select(job.c.kind).where(job.c.id == id_)).scalar()
            what = "there is none" if kind is None else f"it is of kind {kind}, or has not ended"
            raise SpecError(f"job {id_}: expected a finished evaluation, {what}")
    return [rows[id_] for id_ in job_ids]


def again(store: Store, row: Row) -> Row:
    """Run one evaluation, without the attacked images that it may have kept: no transaction is open meanwhile."""
    id_ = row["job_id"]
    with store.begin() as db:
        stored = db.execute(select(job.c.spec, job.c.eps, *result.c).join_from(job, result).where(job.c.id == id_))
        before = dict(stored.mappings().one())
        outcome = example_outcomes.to_columns(examples_of(db, id_))
        weights = weights_of(db, [id_]).get(id_, {})
    spec = EvalSpec.model_validate(before["spec"]).model_copy(update={"images": 0})
    context = Context(device_for(before["device"]), store.artifacts, str(Path.cwd()), weights)
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints: stdout belongs to the results
        with there(id_, FileNotFoundError, ValueError):  # data that are gone, or others
            load_data(spec.data)
        with there(id_, FileNotFoundError, ArtifactError):  # weights that are gone, or damaged
            (done,) = [frame for frame in run(spec, context) if isinstance(frame, Result)]
    return {"job_id": id_} | {name: row[name] for name in SHOWN} | judged(before, outcome, done)


@contextlib.contextmanager
def there(id_: int, *errors: type[Exception]) -> Iterator[None]:
    """What a job needs and does not find becomes one line."""
    try:
        yield
    except errors as error:
        raise RunError(f"job {id_} cannot run again: {error}") from error


def device_for(before: str) -> str:
    """The kind of device that the stored result was made on, where this machine has it."""
    kind = before.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"the result was made on {before}, and this machine has no GPU: choose others with --where device=cpu*"
        )
    return kind


def judged(before: Row, outcome: dict[str, np.ndarray], done: Result) -> Row:
    """Whether what came now is what was stored."""
    assert done.examples is not None
    new = example_outcomes.to_columns(example_outcomes.decode(done.examples))
    same_place = place(before) == place(done.row)
    found: Row = {"outcome": EQUAL, "same_machine": same_place, "examples_that_differ": 0}
    found |= {"old_robust_accuracy": before["robust_accuracy"], "new_robust_accuracy": done.row["robust_accuracy"]}
    if diff.equal(outcome, new) and all(before[name] == done.row[name] for name in diff.MEASURED):
        return found
    fell = outcome["adversarial_prediction"] != new["adversarial_prediction"]
    beyond = diff.compare(outcome, new, distances=before["eps"] is None)["change"]
    return found | {"outcome": DIFFERS if same_place else beyond, "examples_that_differ": int(fell.sum())}


def place(row: Row) -> tuple[Any, ...]:
    """What a result was made on and with: where that agrees, every bit must, whichever release has the same kernels."""
    return row["device"], {name: found for name, found in row["versions"].items() if name != "robustq"}


def failed(rows: Sequence[Row]) -> int:
    """How many rows did not come out as they must."""
    return sum(row["outcome"] in (DIFFERS, diff.CHANGED) for row in rows)
