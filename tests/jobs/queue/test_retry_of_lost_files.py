"""Files that are lost are made again where somebody asks for it: by a retry of what needs them."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from sqlalchemy import select

from robustq.jobs.commands import queue_actions
from robustq.jobs.queue import claims, transitions
from robustq.jobs.store import artifacts
from robustq.jobs.store.schema import job
from tests.helpers.small_store import ROW, of, run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("asked", ["the evaluation", "the training"])
def test_lost_weights_are_trained_again(store, how: str, asked: str):
    """Their evaluations cannot run without them, and the training is done: it is taken back."""
    (train,), evals, (worst,) = of(store, "train"), of(store, "eval"), of(store, "worst")
    kept = artifacts.put(store.artifacts, "weights", b"weights")
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == train)
        assert transitions.start(db, claimed, "one", "here", 1, "")
        assert transitions.finish(db, claimed, ROW, artifacts=[kept])
    run(store, evals[0], fail=True)
    assert queue_actions.retry(store, [evals[0]], None) == 2  # nothing is lost: it and the worst case
    run(store, evals[0], fail=True)
    path = Path(artifacts.blob_path(store.artifacts, kept.sha256))
    path.unlink() if how == "gone" else path.write_bytes(b"other")
    n = queue_actions.retry(store, [evals[0] if asked == "the evaluation" else train], None)
    with store.begin() as db:
        states = dict(db.execute(select(job.c.id, job.c.state).where(job.c.id.in_([train, *evals, worst]))).all())
    if asked == "the evaluation":
        assert (n, states) == (3, {train: "queued", evals[0]: "blocked", evals[1]: "blocked", worst: "blocked"})
    else:
        assert (n, states) == (1, {train: "queued", evals[0]: "failed", evals[1]: "blocked", worst: "failed"})
    again = artifacts.put(store.artifacts, "weights", b"weights")
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == train)
        assert transitions.start(db, claimed, "one", "here", 1, "")
        assert transitions.finish(db, claimed, ROW, artifacts=[again])


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_lost_maps_are_made_again(store, how: str):
    """As lost images are."""
    (train,), (first, _) = of(store, "train"), of(store, "eval")
    run(store, train)
    kept = artifacts.put(store.artifacts, "maps", safetensors.numpy.save({"index": np.zeros(1)}))
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == first)
        assert transitions.start(db, claimed, "one", "here", 1, "")
        assert transitions.finish(db, claimed, ROW, examples=(b"measures", 1), artifacts=[kept])
    path = Path(artifacts.blob_path(store.artifacts, kept.sha256))
    assert queue_actions.retry(store, [first], None) == 0
    path.unlink() if how == "gone" else path.write_bytes(b"other")
    assert queue_actions.retry(store, [], "small") == (0 if how == "gone" else 1)
    assert queue_actions.retry(store, [first], None) == (1 if how == "gone" else 0)
    with store.begin() as db:
        found = dict(db.execute(select(job.c.id, job.c.state).where(job.c.id.in_([train, first]))).all())
    assert found == {train: "done", first: "queued"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", "damaged"])
@pytest.mark.parametrize("asked", ["its number", "the sweep"])
def test_lost_images_are_made_again(store, how: str, asked: str):
    """Those that are gone only where the evaluation is asked for by its number: somebody may have made room."""
    (train,), evals = of(store, "train"), of(store, "eval")
    run(store, train)
    images = safetensors.numpy.save({"x_adv": np.zeros((1, 1, 2, 2), np.float32)})
    kept = artifacts.put(store.artifacts, "images", images)
    for id_ in evals:
        with store.begin() as db:
            (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == id_)
            assert transitions.start(db, claimed, "one", "here", 1, "")
            assert transitions.finish(db, claimed, ROW, examples=(b"outcomes", 1), artifacts=[kept])
    path = Path(artifacts.blob_path(store.artifacts, kept.sha256))
    assert queue_actions.retry(store, evals, None) == 0
    path.unlink() if how == "gone" else path.write_bytes(b"other")
    if asked == "the sweep":
        assert queue_actions.retry(store, [], "small") == (0 if how == "gone" else 2)
    else:
        assert queue_actions.retry(store, [evals[0]], None) == 1
        with store.begin() as db:
            states = dict(db.execute(select(job.c.id, job.c.state).where(job.c.id.in_([train, *evals]))).all())
        assert states == {train: "done", evals[0]: "queued", evals[1]: "done"}
