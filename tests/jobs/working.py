"""What a driver does to a store, done in the process of a test."""

from pathlib import Path

from jobs import claims, queue, settle
from jobs.engine import Store
from jobs.material import Context, Result
from jobs.run import run
from jobs.specs import EvalSpec, TrainSpec, parse
from jobs.states import counts
from jobs.study import Origin, Study
from jobs.submit import submit


def work_off(store: Store, slots: int = 1, unit: float = 0.0) -> None:
    """Run the queue until it is empty."""
    for _ in range(100):
        with store.begin() as db:
            settle.settle_all(db, "one", None)
            claimed = settle.split_long(db, claims.claim(db, "one", most=64), slots, unit)
            if not claimed and not any(counts(db)[state] for state in queue.UNFINISHED):
                return
        for c in claimed:
            with store.begin() as db:
                assert queue.start(db, c, "one", "here", 1, "")
            spec = parse(c.spec)
            assert isinstance(spec, TrainSpec | EvalSpec)
            *_, found = run(spec, Context("cpu", store.artifacts, weights=c.weights))
            assert isinstance(found, Result)
            with store.begin() as db:
                blob = None if found.examples is None else (found.examples, found.row["n"])
                assert queue.finish(db, c, found.row, blob, found.artifacts)
    raise AssertionError("the queue does not end")


def worked_off(folder: Path, study: dict, **how) -> Store:
    """A new store whose study ran."""
    folder.mkdir()
    store, _ = submit(
        str(folder / "r.db"), Study.model_validate(study), Origin("s", {}, {}), folder, data_folder=folder
    )
    with store.begin() as db:
        queue.register(db, "one", "here", 1, 0.0, "0")
    work_off(store, **how)
    return store
