"""What a driver does between claims: shards put together or refused, evaluations split or left whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from robustlib.metrics import summarise
from robustq.jobs.errors import ArtifactError
from robustq.jobs.queue import claims, driver_jobs, lost_files, shards, transitions
from robustq.jobs.queue.status import job_log
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec
from robustq.jobs.store import artifacts, example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import event, job, result
from tests.helpers.fake_results import add_result, add_sweep, outcome

EXTRA = {"mode": "float32", "peak_memory_bytes": 1, "forwards": 10}
ROW = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}


def finish(store: Store, claimed: Claimed, first: int, n: int) -> None:
    """A shard's result: outcomes of n examples from the first one on."""
    columns = outcome(first, n=n) | {"index": np.arange(first, first + n)}
    row = summarise(columns) | {"seconds": 2.0, "device": "cpu", "versions": {"torch": "2.14"}, "extra": EXTRA}
    data = example_outcomes.encode(example_outcomes.to_table(columns))
    with store.begin() as db:
        assert transitions.start(db, claimed, "one", "here", 1, "")
        assert transitions.finish(db, claimed, row, (data, n))


def split_in_two(store: Store, starts: tuple[int, int]) -> Claimed:
    """An evaluation whose two shards of 20 examples are done, the examples from these places on; it is queued."""
    with store.begin() as db:
        (train,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, train, "one", "here", 1, "")
        assert transitions.finish(db, train, ROW)
        (evaluation,) = claims.claim(db, "one", most=1, what=job.c.kind == "eval")
        assert shards.split(db, evaluation, [(0, 20), (20, 40)])
        parts = claims.claim(db, "one", most=2, what=job.c.kind == "shard")
    for claimed, first in zip(parts, starts, strict=True):
        finish(store, claimed, first, 20)
    return evaluation


def test_shards_that_hold_an_example_twice_end_their_evaluation(sqlite_store: Store):
    evaluation = split_in_two(sqlite_store, (0, 0))
    with sqlite_store.begin() as db:
        driver_jobs.settle_all(db, "one", None)
        log = job_log(db, evaluation.id)
        why = f"expected the shards of job {evaluation.id} to hold each example once, in order"
        assert (log["state"], log["error_class"], log["error_message"]) == ("failed", "ValueError", why)
        assert log["results"] == []


def test_shards_are_put_together_by_whoever_holds_their_evaluation(sqlite_store: Store):
    evaluation = split_in_two(sqlite_store, (0, 20))
    with sqlite_store.begin() as db:
        assert not shards.merge(db, evaluation)  # its claim was used up by the split
        notes = select(event.c.kind).where(event.c.job_id == evaluation.id).order_by(event.c.id)
        assert db.execute(notes).scalars().all() == ["split", "stale-result"]
        driver_jobs.settle_all(db, "one", None)
        (row,) = db.execute(select(result).where(result.c.job_id == evaluation.id)).all()
    assert (row.n, row.seconds, row.extra["forwards"], row.extra["shards"]) == (40, 4.0, 20, 2)


@pytest.mark.parametrize(
    ("index", "ranges", "spec", "held"),
    [
        ([0, 1, 2, 3], [(0, 2), (2, 4)], {}, True),
        ([0, 1, 1, 2], [(0, 2), (2, 4)], {}, False),
        ([1, 5, 7, 9], [(0, 6), (6, 10)], {}, False),  # the first ones have no gaps
        ([1, 5, 7, 9], [(0, 6), (6, 10)], {"choose": "stratified", "examples": 4}, True),
        ([1, 5, 7], [(0, 6), (6, 10)], {"choose": "stratified", "examples": 4}, False),
        ([1, 7, 5, 9], [(0, 6), (6, 10)], {"choose": "stratified", "examples": 4}, False),
        ([1, 5, 7, 9], [(0, 6), (7, 10)], {"choose": "stratified", "examples": 4}, False),
    ],
)
def test_whether_shards_hold_each_example_once(index: list[int], ranges: list, spec: dict, held: bool):
    parts = [{"spec": {"first": first, "last": last}} for first, last in ranges]
    assert shards.holds_each_once(np.array(index), parts, spec) is held


def test_what_shards_tell_besides_is_added_or_weighed_by_examples():
    def shard(n: int, agreement: float, robust: float, **more: Any) -> dict[str, Any]:
        radii, surrogate = [[0.1, robust], [0.2, 0.0]], {"name": "other", "agreement": agreement}
        return {"n": n, "extra": EXTRA | {"radii": radii, "surrogate": surrogate} | more}

    parts = [
        shard(100, 1.0, 0.5, overflows=0, check_seconds=2.0),
        shard(300, 0.6, 0.1, overflows=7, mode="float16", peak_memory_bytes=9),  # of before check_seconds
    ]
    found = shards.merged_extra(parts)
    assert found["surrogate"] == {"name": "other", "agreement": pytest.approx(0.7)}
    assert found["radii"] == [[0.1, pytest.approx(0.2)], [0.2, 0.0]]
    assert (found["overflows"], found["mode"], found["peak_memory_bytes"]) == (7, "float32; float16", 9)
    assert found["check_seconds"] == 2.0


def test_a_unit_of_cost_takes_what_it_took_before_on_such_a_device(made_up: Store):
    with made_up.begin() as db:
        assert shards.seconds_a_unit(db, "cpu") == shards.SECONDS_A_UNIT["cpu"]  # a rule of thumb
        sweep_id = add_sweep(db, "s")
        for seconds, cost, device in ((6.0, 2.0, "cpu: one"), (2.0, 6.0, "cpu: two"), (9.0, 1.0, "cuda:0: H100")):
            add_result(db, sweep_id, "a", "pgd", cost=cost, seconds=seconds, device=device)
        add_result(db, sweep_id, "a", "worst-case", kind="worst", cost=1.0, seconds=100.0)  # no worker ran it
        assert (shards.seconds_a_unit(db, "cpu"), shards.seconds_a_unit(db, "cuda")) == (1.0, 9.0)


def evaluation(attack: str, place: str = "digits") -> Claimed:
    of = AttackSpec(name=attack, norm="Linf", eps=0.1)
    data = DataRef(place=place, sha256="d" * 64)
    spec = EvalSpec(model=ModelSpec(arch="lenet5"), data=data, attack=of, shards=3).model_dump(mode="json")
    return Claimed(1, "k", 1, "eval", spec | {"images": 0}, {}, cost=1.0)


@pytest.mark.parametrize(
    "claimed",
    [
        evaluation("audit"),  # each of its attacks answers to the one before
        evaluation("pgd", "parquet:/nowhere"),  # its worker says why
        evaluation("pgd", "no such set"),
    ],
)
def test_what_cannot_be_split_stays_whole_also_where_it_is_asked_for(sqlite_store: Store, claimed: Claimed):
    with sqlite_store.begin() as db:
        assert driver_jobs.split_long(db, [claimed], 8, 1e9) == [claimed]


def test_a_file_that_cannot_be_read_is_not_taken_for_lost(tmp_path: Path):
    kept = artifacts.put(str(tmp_path), "weights", b"weights")
    path = Path(artifacts.blob_path(str(tmp_path), kept.sha256))
    assert lost_files.state(str(tmp_path), kept.sha256, "weights") == "whole"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and fails at the first byte
    with pytest.raises(ArtifactError, match="cannot be read"):
        lost_files.state(str(tmp_path), kept.sha256, "weights")


def test_a_file_of_images_that_holds_none_is_damaged(tmp_path: Path):
    """Its hash is that of its content."""
    kept = artifacts.put(str(tmp_path), "images", b"text")
    assert lost_files.state(str(tmp_path), kept.sha256, "images") == "damaged"
