"""Stored evaluations run again in this process, and compared with what was stored: nothing is written to the store."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from sqlalchemy import Connection, select

from robustlib.metrics import CLEAN
from robustlib.settings import AUDIT, EXPLAIN, GRADIENT_SUMS, TRANSFER
from robustq.jobs.errors import ArtifactError, RunError, SpecError
from robustq.jobs.queue.dependencies import weights_of
from robustq.jobs.results.columns import ResultRow
from robustq.jobs.results.explanations.rows import asks_of_explanations, explanation_rows
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import chosen_rows
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.evaluation import last_curve
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.run import run
from robustq.jobs.specs import AttackSpec, EvalSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.explanations import measures
from robustq.jobs.store.schema import job, result
from robustq.jobs.verification import diff
from robustq.jobs.verification.replayed_explanations import any_moved, differing_images

EQUAL, DIFFERS = "equal", "differs"
LAST_BITS = (
    "on a GPU bits may differ from run to run: some of cuDNN's kernels sum up in no fixed order, and others are taken "
    "for other batch sizes"
)
SHOWN = ("model", "attack", "norm", "eps", "seed", "n")


class Replayed(TypedDict):
    """What came of running an evaluation again. outcome: EQUAL, DIFFERS, or what `diff` says.  reason: why it may be
    other than equal on the same machine; empty where it may not.  Accuracies: fractions.
    """

    job_id: int
    model: str
    attack: str
    norm: str | None
    eps: float | None
    seed: int
    n: int
    outcome: str
    reason: str
    same_machine: bool
    examples_that_differ: int
    old_robust_accuracy: float | None  # None of an explanation
    new_robust_accuracy: float | None


def replay(
    store: Store,
    number: int,
    *,
    filters: Filters,
    job_ids: Sequence[int] = (),
    seed: int = 0,
    threads: int = 1,
    device: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Replayed]:
    """Run stored evaluations again: those of these numbers, or `number` drawn at random, as `seed` says.

    Each row says whether the result is equal to the bit; where it is not, on the same CPU with the same versions it
    differs, and elsewhere, also on a GPU or where its attack was another once, it is within or changed beyond its
    interval, as in `diff`. Worst cases are
    not drawn: they are computed from other evaluations. device: "cpu" or "cuda"; the kind that each was stored of where
    none is given. Raises SpecError where there is nothing to run, RunError where there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: this machine has no GPU that can be used: leave it out, or say cpu")
    torch.set_num_threads(threads)
    last_curve.clear()  # what this process may have found before must not stand in for a run
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # where drivers find users' modules too
    with store.begin() as db:
        chosen = numbered_evaluations(db, job_ids) if job_ids else drawn(db, number, filters, seed)
    rows = []
    for i, row in enumerate(chosen):
        tell(f"{i + 1} of {len(chosen)}: job {row['job_id']}, {row['model']} under {row['attack']}")
        rows.append(run_again(store, row, device))
    return rows


def runnable_rows(db: Connection, filters: Filters) -> list[ResultRow]:
    """The results that can be run again."""
    rows: list[Any] = list(chosen_rows(db, filters, (*SHOWN, "job_id")))
    if asks_of_explanations(filters):
        rows += [row for row in explanation_rows(db, filters) if row["against"] == CLEAN]
    runs = set(db.execute(select(job.c.id).where(job.c.kind == "eval")).scalars())
    return [row for row in rows if row["job_id"] in runs]


def drawn(db: Connection, number: int, filters: Filters, seed: int) -> list[ResultRow]:
    rows = runnable_rows(db, filters)
    if not rows:
        raise SpecError("there is no evaluation to run again that the options leave")
    chosen = random.Random(seed).sample(range(len(rows)), min(number, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def numbered_evaluations(db: Connection, job_ids: Sequence[int]) -> list[ResultRow]:
    rows = {row["job_id"]: row for row in runnable_rows(db, make_filters(None, {"job_id": job_ids}))}
    for id_ in job_ids:
        if id_ not in rows:
            kind = db.execute(select(job.c.kind).where(job.c.id == id_)).scalar()
            what = "there is none" if kind is None else f"it is of kind {kind}, or has not ended"
            raise SpecError(f"job {id_}: expected a finished evaluation, {what}")
    return [rows[id_] for id_ in job_ids]


def run_again(store: Store, row: ResultRow, device: str | None = None) -> Replayed:
    """Run one evaluation, without the attacked images that it may have kept: no transaction is open meanwhile."""
    id_ = row["job_id"]
    with store.begin() as db:
        stored = db.execute(select(job.c.spec, job.c.eps, *result.c).join_from(job, result).where(job.c.id == id_))
        before = dict(stored.mappings().one())
        outcome = measures.columns_of(db, id_)
        weights = weights_of(db, [id_]).get(id_, {})
    spec = EvalSpec.model_validate(before["spec"]).model_copy(update={"images": 0})
    context = Context(device or device_for(before["device"]), store.artifacts, str(Path.cwd()), weights)
    with contextlib.redirect_stdout(sys.stderr):  # what the model prints: stdout belongs to the results
        with there(id_, FileNotFoundError, ValueError):  # data that are gone, or others
            load_data(spec.data)
        with there(id_, FileNotFoundError, ArtifactError):  # weights that are gone, or damaged
            (done,) = [frame for frame in run(spec, context) if isinstance(frame, Result)]
    same_machine = made_with(before) == made_with(done.row)
    judge = judge_explanation if spec.attack.name == EXPLAIN else judge_again
    was = once(spec.attack)
    judged, differing = judge(before, outcome, done, same_machine=same_machine and not was)
    return Replayed(
        job_id=id_,
        model=row["model"],
        attack=row["attack"],
        norm=row["norm"],
        eps=row["eps"],
        seed=row["seed"],
        n=row["n"],
        outcome=judged,
        reason="" if judged == EQUAL else was or (LAST_BITS if on_gpu(before) else ""),
        same_machine=same_machine,
        examples_that_differ=differing,
        old_robust_accuracy=before["robust_accuracy"],
        new_robust_accuracy=done.row.get("robust_accuracy"),
    )


def once(attack: AttackSpec) -> str:
    """What was other when a result was stored, by a spec that lacks a mark of `AttackSpec`; empty for nothing."""
    params = attack.params
    if attack.name == AUDIT and not attack.surrogate_gradients:
        return "stored when audits did not go round what passes no gradient"
    if attack.name == EXPLAIN and params["method"] in GRADIENT_SUMS and not attack.split_sums:
        return "stored when sums of gradients were of whole passes, which round otherwise"
    if attack.name == TRANSFER and attack.norm == "L1" and params.get("queries", 1) > 1 and not attack.whole_steps:
        return "stored when steps of transfer in L1 were coarser"
    return ""


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


def judge_again(
    before: Mapping[str, Any], outcome: dict[str, np.ndarray], done: Result, *, same_machine: bool
) -> tuple[str, int]:
    """Whether what came now is what was stored, and how many examples differ."""
    assert done.examples is not None
    new = example_outcomes.to_columns(example_outcomes.decode(done.examples))
    if diff.equal(outcome, new) and all(before[name] == done.row[name] for name in diff.MEASURED):
        return EQUAL, 0
    fell = outcome["adversarial_prediction"] != new["adversarial_prediction"]
    beyond = diff.judge_examples(outcome, new, distances=before["eps"] is None).change
    return DIFFERS if same_machine and not on_gpu(before) else beyond, int(fell.sum())


def judge_explanation(
    before: Mapping[str, Any], old: dict[str, np.ndarray], done: Result, *, same_machine: bool
) -> tuple[str, int]:
    """The same of an explanation job."""
    assert done.examples is not None
    new = measures.to_columns(measures.decode(done.examples))
    differing = differing_images(old, new)
    if not differing and before["clean_accuracy"] == done.row["clean_accuracy"]:
        return EQUAL, 0
    if same_machine and not on_gpu(before):
        return DIFFERS, differing
    return (diff.CHANGED if any_moved(old, new) else diff.WITHIN), differing


def on_gpu(row: Mapping[str, Any]) -> bool:
    return row["device"].startswith("cuda")


def made_with(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a result was made on and with: where that agrees, every bit must, whichever release has the same kernels."""
    return row["device"], {name: found for name, found in row["versions"].items() if name != "robustq"}


def count_wrong(rows: Sequence[Replayed]) -> int:
    """How many rows did not come out as they must."""
    return sum(row["outcome"] in (DIFFERS, diff.CHANGED) for row in rows)
