"""A store with a small graph of jobs: two trainings, two evaluations of each, a worst case of each."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select

from robustlib.settings import TrainSettings
from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.queue.status import counts
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec, TrainSpec, WorstSpec
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.schema import job
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.plan import Planned, Resolved
from robustq.jobs.submission.submit import record

DATA = DataRef(place="digits", sha256="d" * 64)
ROW = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}


def small_plan() -> list[Planned]:
    plan = []
    for label, arch in (("a", "lenet5"), ("b", "convnet3")):
        model = ModelSpec(arch=arch)

        def planned(spec, *needs, label=label, arch=arch):
            plan.append(Planned(spec, spec.key(), needs, label, arch, "standard", "digits", 0))
            return spec.key()

        train = planned(TrainSpec(model=model, data=DATA, settings=TrainSettings(epochs=1)))
        evals = [
            planned(
                EvalSpec(model=model, train=train, data=DATA, attack=AttackSpec(name=name, norm="Linf", eps=0.1)), train
            )
            for name in ("fgsm", "pgd")
        ]
        planned(WorstSpec(evals=tuple(sorted(evals)), norm="Linf", eps=0.1), *evals)
    return plan


def resolved(name: str = "small") -> Resolved:
    entry = {"arch": "lenet5", "train": {}}
    study = Study.model_validate({"name": name, "models": {"a": entry}, "attacks": [{"name": "pgd"}]})
    return Resolved(study, Origin(name, {}, {}), DATA, DATA, {}, f"{name:0<64}")


@contextmanager
def filled(url: str) -> Iterator[Store]:
    store = open_store(url, create=True, write=True)
    with store.begin() as db:
        record(db, resolved(), small_plan())
        for driver in ("one", "two"):
            drivers.register(db, driver, "here", os.getpid(), time.time(), "0")
    try:
        yield store
    finally:
        store.engine.dispose()


def states(store: Store) -> dict[str, int]:
    with store.begin() as db:
        return {state: n for state, n in counts(db).items() if n}


def of(store: Store, kind: str, model: str = "a") -> list[int]:
    """Numbers of a model's jobs, in order."""
    with store.begin() as db:
        arch = {"a": "lenet5", "b": "convnet3"}[model]
        chosen = select(job.c.id).where((job.c.kind == kind) & (job.c.arch == arch))
        return list(db.execute(chosen.order_by(job.c.id)).scalars())


def run(store: Store, *ids: int, fail: bool = False) -> None:
    for id_ in ids:
        with store.begin() as db:
            (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == id_)
            assert transitions.start(db, claimed, "one", "here", 1, "")
            assert (
                transitions.fail(db, claimed, "ValueError", "no", "trace")
                if fail
                else transitions.finish(db, claimed, ROW)
            )
