"""A sample of a bundle's evaluations, run again from a store that is made of it for as long as that takes."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from robustlib.addresses import is_address
from robustlib.datasets import load
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.results.filters import Filters
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.package_models import GRADIENTS
from robustq.jobs.specs import CodeRef, DataRef, EvalSpec, ModelSpec
from robustq.jobs.statistics.explanation_means import means_rows
from robustq.jobs.store import artifacts
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.explanations import measures
from robustq.jobs.store.schema import (
    artifact,
    example_blob,
    explanation,
    job,
    job_artifact,
    job_dep,
    result,
    sweep,
    sweep_job,
)
from robustq.jobs.verification.bundle_format import Bundle
from robustq.jobs.verification.bundled_explanations import encoded
from robustq.jobs.verification.bundled_jobs import BundledJob, How, outcome_name, read_outcomes, schema_of
from robustq.jobs.verification.bundled_sources import file_name, gradient_code, program_name
from robustq.jobs.verification.replay import Replayed, device_for, replay

NUMBER = re.compile(r"^job \d+ cannot run again: ")  # of the temporary store, which nobody knows
UNTRUSTED = "models that are code of the bundle, which nobody here vouches for: --trust-code runs it"


def replay_sample(
    bundle: Bundle, jobs: Sequence[BundledJob], folder: Path, how: How, tell: Callable[[str], None]
) -> tuple[list[Replayed], dict[str, int], list[str]]:
    """Rows of those that ran, as many as wanted, drawn at random; of those drawn before why they could not run here,
    and of how many that holds; and a line for each that should have run and did not.
    """
    rows: list[Replayed] = []
    left_out: Counter[str] = Counter()
    failed: list[str] = []
    runs = sorted((one for one in jobs if one.kind == "eval"), key=lambda one: one.key)
    restored = RestoredStore(bundle, {one.key: one for one in jobs}, folder, how.dataset)
    try:
        for one in random.Random(how.seed).sample(runs, len(runs)):
            if len(rows) + len(failed) == how.number:
                break
            if (why := restored.obstacle(one, trust_code=how.trust_code)) is not None:
                left_out[why] += 1
                continue
            tell(f"{len(rows) + len(failed) + 1} of {how.number}: {one.told}")
            try:
                number = restored.put(one)
                rows += replay(restored.store, 1, filters=Filters(), job_ids=[number], threads=how.threads)
            except Exception as error:  # what strangers wrote may fail in any way, and that is a finding
                why = NUMBER.sub("", " ".join(str(error).split())) or type(error).__name__
                failed.append(f"{one.told}: it does not run again: {why}")
    finally:
        restored.store.engine.dispose()
    return rows, dict(left_out), failed


class RestoredStore:
    """A store of some of a bundle's jobs, in a folder of ours: each is there once it is asked for."""

    def __init__(self, bundle: Bundle, jobs: Mapping[str, BundledJob], folder: Path, dataset: str | None):
        self.bundle, self.jobs, self.folder, self.dataset = bundle, jobs, folder, dataset
        opened = open_store(str(folder / "results.db"), create=True, write=True)
        self.store: Store = replace(opened, artifacts=str(folder / "artifacts"))
        self.numbers: dict[str, int] = {}
        with self.store.begin() as db:
            about = {"name": "bundle", "spec": {}, "identity": "0" * 64, "created_at": 0.0}
            self.sweep = db.execute(sa.insert(sweep).values(**about).returning(sweep.c.id)).scalar_one()

    def obstacle(self, one: BundledJob, *, trust_code: bool) -> str | None:
        """Why an evaluation cannot run on this machine, through no fault of the bundle's; None where it can."""
        if not trust_code and any(model.code is not None for model in one.models()):
            return UNTRUSTED
        try:
            device_for(one.result.device)
            load_data(self.data(one.parsed))
        except (RunError, FileNotFoundError, ValueError) as error:  # SpecError is one of the last
            return " ".join(str(error).split())
        return None

    def data(self, spec: Any) -> DataRef:
        """The data of an evaluation where they lie here: where a person says, or under this folder by their last name.

        Never where the bundle says, which may name the whole disk.
        """
        place = self.dataset or here(spec.data.place)
        return spec.data.model_copy(update={"place": absolute(place)})

    def put(self, one: BundledJob) -> int:
        """Number of a job, which is restored with what it needs."""
        if one.key in self.numbers:
            return self.numbers[one.key]
        needs = [self.put(self.jobs[key]) for key in one.needs]
        for left in one.artifacts.values():
            artifacts.put(self.store.artifacts, "weights", self.bundle.read(f"artifacts/{left.sha256}"))
        blob = None
        if one.outcomes:
            blob = encoded(one, read_outcomes(self.bundle.read(outcome_name(one.key)), schema_of(one)))
        with self.store.begin() as db:
            number = self.numbers[one.key] = insert(db, one, self.placed(one), self.sweep, blob)
            for needed in needs:
                db.execute(sa.insert(job_dep).values(job_id=number, needs_id=needed))
        return number

    def placed(self, one: BundledJob) -> dict[str, Any]:
        """The job's spec with its files where they are unpacked, and its data where they lie: no part of its key."""
        spec = one.parsed
        if not isinstance(spec, EvalSpec):
            return one.spec  # it runs no more: its weights are there
        attack = spec.attack
        if attack.surrogate is not None:
            there = attack.surrogate.model_copy(update={"model": self.model(attack.surrogate.model)})
            attack = attack.model_copy(update={"surrogate": there})
        found = spec.model_copy(update={"data": self.data(spec), "attack": attack, "model": self.model(spec.model)})
        return found.model_dump(mode="json")

    def model(self, model: ModelSpec) -> ModelSpec:
        weights, code = model.weights, model.code
        if weights is not None:
            name = file_name(weights.sha256, weights.place)
            weights = weights.model_copy(update={"place": str(self.unpacked([name]) / name)})
        if code is not None and not code.factory:
            name = program_name(code)
            code = code.model_copy(update={"place": str(self.unpacked([name]) / name)})
            if (lent := gradient_code(model, Path(code.place))) is not None:
                options = model.options | {GRADIENTS: f"{self.source(lent)}:{lent.factory}"}
                model = model.model_copy(update={"options": options})
        elif code is not None and code.place.endswith(".py") and not is_address(code.reference):
            code = code.model_copy(update={"place": str(self.source(code))})
        return model.model_copy(update={"weights": weights, "code": code})

    def source(self, code: CodeRef) -> Path:
        """The user's file, unpacked with what it imports from beside it."""
        folder = f"code/{code.sha256}/"
        main = folder + Path(code.place).name
        beside = [name for name in self.bundle.members if name.startswith(folder)]
        return self.unpacked([main, *(name for name in beside if name != main)]) / main

    def unpacked(self, names: Sequence[str]) -> Path:
        """The folder that these members lie in by their names. Raises SpecError where the bundle lacks one."""
        if lacking := [name for name in names if name not in self.bundle.members]:
            raise SpecError(f"the bundle lacks {lacking[0]}")
        self.bundle.unpack([name for name in names if not (self.folder / name).exists()], self.folder)
        return self.folder


def here(place: str) -> str:
    """A data set of files by their last name alone. Raises SpecError for one that has none."""
    kind, colon, path = place.partition(":")
    if not colon or kind not in load.PATH_DATASETS:
        return place
    if (name := Path(path).name) in ("", ".", ".."):
        raise SpecError(f"the data set {place!r} has no name: say with --dataset where it lies")
    return f"{kind}:{name}"


def absolute(dataset: str) -> str:
    """A data set's name with an absolute path, as studies have it."""
    kind, colon, place = dataset.partition(":")
    return f"{kind}:{Path(place).expanduser().absolute()}" if colon and kind in load.PATH_DATASETS else dataset


def insert(db: sa.Connection, one: BundledJob, spec: dict[str, Any], sweep_id: int, blob: bytes | None) -> int:
    """Insert a finished job with its result; returns its number."""
    named = ("key", "kind", "arch", "defence", "dataset", "attack", "norm", "eps", "seed", "recipe", "subject")
    values = {name: getattr(one, name) for name in (*named, "bundle_key", "cost")}
    values |= {"spec": spec, "state": "done", "created_at": 0.0}
    number = db.execute(sa.insert(job).values(**values).returning(job.c.id)).scalar_one()
    db.execute(sa.insert(sweep_job).values(sweep_id=sweep_id, job_id=number, model=one.model))
    db.execute(sa.insert(result).values(job_id=number, fence=0, **one.result.model_dump()))
    if blob is not None:
        stored = {"n": one.result.n, "sha256": hashlib.sha256(blob).hexdigest(), "data": blob}
        db.execute(sa.insert(example_blob).values(job_id=number, **stored))
    if blob is not None and one.explains:
        rows = means_rows(measures.to_columns(measures.decode(blob)), spec["attack"]["params"])
        db.execute(sa.insert(explanation), [row | {"job_id": number} for row in rows])
    for role, left in one.artifacts.items():
        known = sa.select(artifact.c.sha256).where(artifact.c.sha256 == left.sha256)
        if db.execute(known).first() is None:
            db.execute(sa.insert(artifact).values(sha256=left.sha256, bytes=left.bytes, created_at=0.0))
        db.execute(sa.insert(job_artifact).values(job_id=number, role=role, sha256=left.sha256))
    return number
