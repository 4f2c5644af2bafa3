"""A driver's work on a store, done in the process of a test."""

from pathlib import Path

from robustq.jobs.queue import claims, driver_jobs, drivers, transitions
from robustq.jobs.queue.status import counts
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.run import run
from robustq.jobs.specs import EvalSpec, TrainSpec, parse
from robustq.jobs.store.connection import Store
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit


def work_off(store: Store, slots: int = 1, unit: float = 0.0) -> None:
    """Run the queue until it is empty."""
    for _ in range(100):
        with store.begin() as db:
            driver_jobs.settle_all(db, "one", None)
            claimed = driver_jobs.split_long(db, claims.claim(db, "one", most=64), slots, unit)
            if not claimed and not any(counts(db)[state] for state in transitions.UNFINISHED):
                return
        for c in claimed:
            with store.begin() as db:
                assert transitions.start(db, c, "one", "here", 1, "")
            spec = parse(c.spec)
            assert isinstance(spec, TrainSpec | EvalSpec)
            *_, found = run(spec, Context("cpu", store.artifacts, weights=c.weights))
            assert isinstance(found, Result)
            with store.begin() as db:
                blob = None if found.examples is None else (found.examples, found.row["n"])
                assert transitions.finish(db, c, found.row, blob, found.artifacts)
    raise AssertionError("the queue does not end")


def worked_off(folder: Path, study: dict, **how) -> Store:
    """A new store whose study ran."""
    folder.mkdir()
    store, _ = submit(
        str(folder / "r.db"), Study.model_validate(study), Origin("s", {}, {}), folder, data_folder=folder
    )
    with store.begin() as db:
        drivers.register(db, "one", "here", 1, 0.0, "0")
    work_off(store, **how)
    return store
