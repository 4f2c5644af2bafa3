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

from robustlib.settings import AUDIT
from robustq.jobs.errors import ArtifactError, RunError
from robustq.jobs.packages.chosen_model import Chosen
from robustq.jobs.packages.stored_numbers import Stored
from robustq.jobs.results.rows import artifact_of
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.evaluation import last_curve
from robustq.jobs.running.run import run
from robustq.jobs.store import artifacts
from robustq.jobs.store.attacked_images import attacked_images
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import decode, to_columns
from robustq.jobs.store.schema import job, job_artifact

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Attacked:
    """The first attacked images of an evaluation. x_adv: float32, (N, C, H, W).  index: places in the split.

    label: true classes.  note: where they come from.
    """

    x_adv: np.ndarray
    index: np.ndarray
    label: np.ndarray
    note: str


def images_of(store: Store, chosen: Chosen, stored: Stored, most: int, tell: Tell) -> Attacked:
    """The first `most` attacked images of the primary evaluation. Raises RunError where it cannot run again."""
    assert stored.primary is not None and stored.primary_spec is not None and stored.outcomes is not None
    n = min(most, len(stored.outcomes["index"]))
    number, spec = stored.primary.job, stored.primary_spec
    kept, note = None, "as the evaluation kept them"
    with store.begin() as db:
        sha256 = artifact_of(db, number, "images") if spec.images >= n else None
    if sha256 is not None:
        with contextlib.suppress(ArtifactError, ValueError, OSError):  # lost: they are made anew
            kept = attacked_images(store.artifacts, sha256, n)
    if kept is None:
        tell(f"the attacked images of job {number} are made anew: the evaluation runs again")
        kept, differing = run_again(store, chosen, stored, n)
        note = "made anew by running the evaluation again"
        if differing:
            note += (
                f"; {differing} of {n} verdicts came out otherwise than stored, on another machine or other versions"
            )
    return Attacked(kept, stored.outcomes["index"][:n], stored.outcomes["label"][:n], note)


def run_again(store: Store, chosen: Chosen, stored: Stored, n: int) -> tuple[np.ndarray, int]:
    """The attacked images of the first n examples, and how many verdicts differ from those stored.

    Nothing is written to the store, nor beside it.
    """
    assert stored.primary is not None and stored.primary_spec is not None and stored.outcomes is not None
    spec = stored.primary_spec
    # The first examples alone come out as among all; an audit is of all.
    fewer = {"examples": n} if spec.choose == "first" and spec.attack.name != AUDIT else {}
    spec = spec.model_copy(update={"images": n} | fewer)
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
        x_adv = attacked_images(folder, kept.sha256, n)
        last_curve.clear()
    success = to_columns(decode(done.examples))["success"][:n]
    return x_adv, int((success != stored.outcomes["success"][:n]).sum())


def surrogate_weights(store: Store, key: str, folder: str) -> dict[str, str]:
    """The weights of a surrogate's training, put where the run looks for them."""
    with store.begin() as db:
        query = select(job_artifact.c.sha256).join(job, job.c.id == job_artifact.c.job_id)
        sha256 = db.execute(query.where((job.c.key == key) & (job_artifact.c.role == "weights"))).scalar()
    if sha256 is None:
        return {}
    artifacts.put(folder, "weights", artifacts.get(store.artifacts, sha256))
    return {key: sha256}
