"""A split evaluation gives the row and the outcomes of the whole one, and its shards are jobs like others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy import select

from robustlib.settings import BEYOND_HALF
from robustq.jobs.commands import queue_actions
from robustq.jobs.queue import claims, shards, transitions, user_actions
from robustq.jobs.queue.shards import edges, wanted_shards
from robustq.jobs.queue.status import counts, job_log
from robustq.jobs.results.rows import result_rows
from robustq.jobs.specs import ShardSpec, parse
from robustq.jobs.store import artifacts, example_outcomes
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, job_artifact, sweep_job
from robustq.jobs.store.sweeps import jobs_of
from tests.helpers.drain_queue import work_off, worked_off

STUDY = {
    "name": "s",
    "models": {"a": {"arch": "lenet5", "train": {"epochs": 1, "examples": 300, "validation_examples": 50}}},
    "attacks": [
        {"name": "pgd", "steps": 3, "eps": 0.1, "restarts": 2},
        {"name": "pgd", "steps": 3, "eps": [0.05, 0.1, 0.2], "norm": "L2"},
        {"name": "fgsm", "eps": 0.1},
        {"name": "square", "eps": 0.0002, "queries": 600},
    ],
    "examples": 250,
    "images": 5,
}


@pytest.mark.parametrize(
    ("n", "wanted", "images", "ranges"),
    [
        (1000, 1, 0, [(0, 1000)]),
        (1000, 4, 0, [(0, 200), (200, 500), (500, 800), (800, 1000)]),
        (250, 2, 0, [(0, 200), (200, 250)]),
        (250, 100, 0, [(0, 100), (100, 200), (200, 250)]),
        (99, 5, 0, [(0, 99)]),
        (1000, 10, 250, [(0, 300), *[(i, i + 100) for i in range(300, 1000, 100)]]),
    ],
)
def test_ranges(n, wanted, images, ranges):
    assert edges(np.arange(n), wanted, images) == ranges


def test_ranges_cover_every_example_once():
    for n in (1, 100, 101, 999, 10_000):
        for wanted in (1, 2, 3, 7, 64):
            found = edges(np.arange(n), wanted, 0)
            assert [i for first, last in found for i in range(first, last)] == list(range(n))
            assert all(first % shards.EDGE == 0 for first, _ in found) and len(found) <= wanted


def test_what_takes_long_is_split():
    claimed = transitions.Claimed(1, "k", 1, "eval", {"shards": None}, {})
    assert wanted_shards(claimed, 100.0, 8, 1.0) == 1
    assert wanted_shards(claimed, 1000.0, 8, 1.0) == 16
    assert wanted_shards(claimed, 60_000.0, 8, 1.0) == 100
    assert wanted_shards(transitions.Claimed(1, "k", 1, "eval", {"shards": 3}, {}), 1.0, 8, 1.0) == 3
    assert wanted_shards(transitions.Claimed(1, "k", 1, "train", {}, {}), 1e9, 8, 1.0) == 1


ALIKE = ("attack", "norm", "eps", "n", "clean_accuracy", "robust_accuracy", "robust_accuracy_low", "distance_median")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["asked", "long"])
def test_shards_come_to_the_whole(tmp_path, how):
    whole = worked_off(tmp_path / "whole", STUDY)
    asked = {"shards": 3} if how == "asked" else {}
    parted = worked_off(tmp_path / "parts", STUDY | asked, slots=2, unit=0.0 if how == "asked" else 1e9)
    with whole.begin() as one, parted.begin() as other:
        left, right = result_rows(one), result_rows(other)
        assert [[row[name] for name in ALIKE] for row in left] == [[row[name] for name in ALIKE] for row in right]
        assert [row["key"] for row in left] == [row["key"] for row in right]
        for a, b in zip(left, right, strict=True):
            assert example_outcomes.to_columns(examples_of(one, a["job_id"])).keys()
            assert examples_of(one, a["job_id"]).to_pylist() == examples_of(other, b["job_id"]).to_pylist()
            before, after = (job_log(db, row["job_id"]) for db, row in ((one, a), (other, b)))
            if after["kind"] == "worst":
                continue
            assert (before["parts"], after["parts"]) == (0, 3)
            extra, merged = before["results"][0]["extra"], after["results"][0]["extra"]
            accuracies = [[stage["robust_accuracy"] for stage in found["stages"]] for found in (extra, merged)]
            assert accuracies[0] == pytest.approx(accuracies[1])
            assert (merged["mode"], merged["shards"]) == (extra["mode"], 3)
            assert merged.get("proved") == extra.get("proved") and ("proved" in extra) == (a["attack"] == "square")
            assert extra.get("proved", 0) <= 250 * a["robust_accuracy"] and extra.get("proved", 1) > 0
        kinds = sorted(other.execute(select(job.c.kind, sa.func.count()).group_by(job.c.kind)).all())
        assert kinds == [("eval", 6), ("shard", 18), ("train", 1), ("worst", 3)]
        assert {row["attack"] for row in right} == {"pgd", "fgsm", "square", "worst-case"}  # shards are no results
    whole.engine.dispose()
    parted.engine.dispose()


def extras(*modes: str, overflows: tuple[int, ...] = (0, 0, 0)) -> list[dict[str, Any]]:
    """What rows of shards tell besides, of those that ran in these modes."""
    return [
        {"n": 100, "extra": {"mode": mode, "peak_memory_bytes": 1} | ({"overflows": many} if many else {})}
        for mode, many in zip(modes, overflows, strict=True)
    ]


@pytest.mark.parametrize(
    ("modes", "told"),
    [
        (("bfloat16", "bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float32", "bfloat16"), "bfloat16; float32"),
        (("half", "half" + BEYOND_HALF, "float32"), "half" + BEYOND_HALF + "; float32"),
        (("half", "float32", "half" + BEYOND_HALF), "half" + BEYOND_HALF + "; float32"),
    ],
)
def test_a_row_tells_every_mode_that_its_shards_ran_in(modes, told):
    assert shards.merged_extra(extras(*modes))["mode"] == told


def test_what_only_later_shards_count_is_in_the_row():
    assert shards.merged_extra(extras("a", "a", "a", overflows=(0, 3, 4)))["overflows"] == 7
    assert "overflows" not in shards.merged_extra(extras("a", "a", "a"))


@pytest.fixture
def split_one(store: Store) -> tuple[Store, transitions.Claimed]:
    """An evaluation split in two, its training done."""
    with store.begin() as db:
        (train,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, train, "one", "here", 1, "")
        row = {"n": 1, "clean_accuracy": 1.0, "robust_accuracy": 0.5, "seconds": 0.1, "device": "cpu", "versions": {}}
        assert transitions.finish(db, train, row)
        (evaluation,) = claims.claim(db, "one", most=1, what=job.c.kind == "eval")
        assert shards.split(db, evaluation, [(0, 500), (500, 1000)])
        assert not shards.split(db, evaluation, [(0, 500), (500, 1000)])  # the claim is used up
    return store, evaluation


def test_shards_run_with_their_evaluations_weights_and_in_its_sweeps(split_one):
    store, evaluation = split_one
    with store.begin() as db:
        found = db.execute(select(job).where(job.c.kind == "shard").order_by(job.c.id)).mappings().all()
        assert [row["cost"] for row in found] == [evaluation.cost / 2] * 2
        assert [isinstance(parse(row["spec"]), ShardSpec) for row in found] == [True, True]
        members = select(sweep_job.c.model).where(sweep_job.c.job_id.in_([row["id"] for row in found]))
        assert db.execute(members).scalars().all() == ["a", "a"]
        assert job_log(db, found[0]["id"])["needs"] == job_log(db, evaluation.id)["needs"][:1]
        assert job_log(db, evaluation.id)["state"] == "blocked"


def test_shards_are_cancelled_and_retried_with_their_evaluation(split_one):
    store, evaluation = split_one
    with store.begin() as db:
        assert user_actions.cancel(db, [evaluation.id]) == 3
        states = select(job.c.state).where((job.c.kind == "shard") | (job.c.id == evaluation.id))
        assert db.execute(states).scalars().all() == ["cancelled"] * 3
        assert user_actions.retry(db, [evaluation.id]) == 4  # with the worst case that waits for it
        assert sorted(db.execute(states).scalars()) == ["blocked", "queued", "queued"]


def test_a_shard_that_fails_takes_its_evaluation_along(split_one):
    store, evaluation = split_one
    with store.begin() as db:
        (shard, _) = claims.claim(db, "one", most=2, what=job.c.kind == "shard")
        assert transitions.start(db, shard, "one", "here", 1, "")
        assert transitions.fail(db, shard, "ValueError", "no", "trace")
        log = job_log(db, evaluation.id)
        assert (log["state"], log["error_class"]) == ("failed", "UpstreamFailed")
        assert counts(db)["failed"] == 3
        assert user_actions.retry(db, jobs_of(None)) == 3


@pytest.mark.slow
def test_lost_images_of_a_split_evaluation_are_made_again(tmp_path):
    study = STUDY | {"attacks": STUDY["attacks"][:1], "shards": 3}
    store = worked_off(tmp_path / "s", study)
    with store.begin() as db:
        (id_,) = db.execute(select(job.c.id).where(job.c.kind == "eval")).scalars()
        before, rows = db.execute(select(job_artifact)).all(), result_rows(db)
    (sha256,) = {row.sha256 for row in before if row.role == "images"}
    path = Path(artifacts.blob_path(store.artifacts, sha256))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert queue_actions.retry(store, [id_], None) == 2  # it and the first shard, which holds all images that are kept
    work_off(store)
    assert path.read_bytes() == content
    with store.begin() as db:
        assert sorted(db.execute(select(job_artifact)).all()) == sorted(before)
        assert [[row[name] for name in ALIKE] for row in result_rows(db)] == [
            [row[name] for name in ALIKE] for row in rows
        ]
    store.engine.dispose()
