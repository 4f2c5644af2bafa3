"""The attacked images of a stored evaluation: as it kept them, or made anew by running it again."""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import select

from robustlib.datasets.choose import spread_by_class
from robustlib.number_text import counted
from robustlib.settings import AUDIT
from robustq.jobs.errors import ArtifactError, RunError
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.packages.stored_numbers import Stored
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.evaluation import last_curve
from robustq.jobs.running.run import run
from robustq.jobs.specs import SubsetSpec
from robustq.jobs.store import artifacts
from robustq.jobs.store.attacked_images import attacked_images
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import decode, to_columns
from robustq.jobs.store.schema import job, job_artifact

Tell = Callable[[str], None]
NEARLY = 0.9  # of the classes that as many images from all over the evaluation show


@dataclass(frozen=True)
class Attacked:
    """Attacked images of an evaluation. x_adv: float32, (N, C, H, W).  rows: of the evaluation's outcomes.

    index: places in the split.  label: true classes.  note: where they come from.
    """

    x_adv: np.ndarray
    rows: np.ndarray
    index: np.ndarray
    label: np.ndarray
    note: str


def images_of(store: Store, chosen: Chosen, stored: Stored, most: int, tell: Tell) -> Attacked:
    """At most so many attacked images of the primary evaluation, as `spread_by_class` takes them of its examples.

    Those that it kept, which are its first, stand for all where they show nearly as many classes. Raises RunError where
    others are needed and it cannot run again.
    """
    assert stored.primary is not None and stored.primary_spec is not None and stored.outcomes is not None
    label, number = stored.outcomes["label"], stored.primary.job
    rows, first = spread_by_class(label, most), label[: stored.primary_spec.images]
    there = rows if len(first) == len(label) else spread_by_class(first, most)
    kept = None
    if len(there) == len(rows) and len(np.unique(label[there])) >= NEARLY * len(np.unique(label[rows])):
        kept = kept_images(store, number, there)
    note = "as the evaluation kept them"
    if kept is not None:
        rows = there
    else:
        tell(f"the attacked images of job {number} are made anew: the evaluation runs again")
        kept, differing = run_again(store, chosen, stored, rows)
        note = "made anew by running the evaluation again"
        if differing:
            other = "on another machine or other versions"
            note += f"; {differing} of {counted(len(rows), 'verdict')} came out otherwise than stored, {other}"
    return Attacked(kept, rows, stored.outcomes["index"][rows], label[rows], note)


def kept_images(store: Store, number: int, rows: np.ndarray) -> np.ndarray | None:
    """The attacked images of these rows of a job's outcomes; None where it kept none, or they are lost."""
    with store.begin() as db:
        sha256 = artifact_of(db, number, "images")
    if sha256 is not None:
        with contextlib.suppress(ArtifactError, ValueError, OSError, IndexError):
            return attacked_images(store.artifacts, sha256, rows)
    return None


def run_again(store: Store, chosen: Chosen, stored: Stored, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The attacked images of these rows of the outcomes, and how many verdicts differ from those stored.

    Nothing is written to the store, nor beside it.
    """
    assert stored.primary is not None and stored.primary_spec is not None and stored.outcomes is not None
    spec, some, own = stored.primary_spec, stored.outcomes["index"][rows], np.arange(len(rows))
    if spec.attack.name == AUDIT:  # of all examples, whose first images it keeps
        spec, own = spec.model_copy(update={"images": int(rows[-1]) + 1}), rows
    else:
        only = {"images": len(rows), "places": tuple(some.tolist())}
        spec = SubsetSpec.model_validate(spec.model_dump(mode="json") | only)
    with tempfile.TemporaryDirectory() as folder:
        weights = {}
        if chosen.train is not None and chosen.weights is not None:
            artifacts.put(folder, "weights", artifacts.get(store.artifacts, chosen.weights))
            weights = {chosen.train: chosen.weights}
        if spec.attack.surrogate is not None and spec.attack.surrogate.train not in (None, *weights):
            weights |= surrogate_weights(store, spec.attack.surrogate.train or "", folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        last_curve.clear()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what the model prints: stdout belongs to the results
                *_, done = run(spec, Context(device, folder, str(Path.cwd()), weights))
        except (FileNotFoundError, ArtifactError) as error:
            raise RunError(f"job {stored.primary.job} cannot run again: {error}") from error
        assert isinstance(done, Result) and done.examples is not None
        (kept,) = [file for file in done.artifacts if file.role == "images"]
        x_adv = attacked_images(folder, kept.sha256, own)
        last_curve.clear()
    came = to_columns(decode(done.examples))
    assert np.array_equal(came["index"][own], some)
    return x_adv, int((came["success"][own] != stored.outcomes["success"][rows]).sum())


def surrogate_weights(store: Store, key: str, folder: str) -> dict[str, str]:
    """The weights of a surrogate's training, put where the run looks for them."""
    with store.begin() as db:
        query = select(job_artifact.c.sha256).join(job, job.c.id == job_artifact.c.job_id)
        sha256 = db.execute(query.where((job.c.key == key) & (job_artifact.c.role == "weights"))).scalar()
    if sha256 is None:
        return {}
    artifacts.put(folder, "weights", artifacts.get(store.artifacts, sha256))
    return {key: sha256}
