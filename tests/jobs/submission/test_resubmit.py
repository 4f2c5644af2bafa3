"""A study that is submitted again: what its jobs need is brought up to date, and it is the latest of its name."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from robustq.jobs.queue import claims, probe_jobs, shards, status
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.specs import AttackSpec, EvalSpec, ModelSpec, WorstSpec, parse
from robustq.jobs.store.bulk_insert import known_jobs
from robustq.jobs.store.schema import job
from robustq.jobs.store.sweeps import find_sweep, latest_sweeps
from robustq.jobs.submission import submit
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.resubmit import has_moved, refresh
from robustq.jobs.submission.submit import Submitted, record
from tests.helpers.small_store import DATA, of, resolved, run, small_plan


def test_what_is_no_part_of_a_key_can_be_mended(store):
    """More time, smaller batches, and files that lie elsewhere now, for jobs that are not done."""
    (train,), evals = of(store, "train"), of(store, "eval")
    run(store, train)
    run(store, evals[0])
    run(store, evals[1], fail=True)
    moved = DATA.model_copy(update={"place": "elsewhere"})
    plan = []
    for planned in small_plan():
        update = {"data": moved} if hasattr(planned.spec, "data") else {}
        update |= {"batch_size": 8} if isinstance(planned.spec, EvalSpec) else {}
        plan.append(replace(planned, spec=planned.spec.model_copy(update=update), timeout_seconds=99.0))
    assert [p.key for p in plan] == [p.spec.key() for p in plan]
    with store.begin() as db:
        assert record(db, resolved("mended"), plan).new == 0
        rows = {row.id: row for row in db.execute(select(job))}
    for id_, row in rows.items():
        place = row.spec.get("data", {"place": None})["place"]
        if id_ in (train, evals[0]):
            assert (place, row.timeout_seconds, row.state) == ("digits", None, "done")
        else:
            assert place in ("elsewhere", None) and row.timeout_seconds == 99.0
            assert row.spec.get("batch_size", 8) in (8, None) and (row.kind != "eval" or row.spec["batch_size"] == 8)
    assert rows[evals[1]].state == "failed"  # retry is for that


def test_a_study_whose_files_moved_is_brought_up_to_date(store):
    there = replace(resolved(), models={"a": ModelSpec(arch="lenet5")})
    with store.begin() as db:
        assert not has_moved(db, 1, there)
        moved = replace(there, data=DATA.model_copy(update={"place": "elsewhere"}))
        assert has_moved(db, 1, moved)
        plan = [
            replace(p, spec=p.spec.model_copy(update={"data": moved.data} if hasattr(p.spec, "data") else {}))
            for p in small_plan()
        ]
        assert record(db, moved, plan) == Submitted(1, "small", 8, 0)
        assert not has_moved(db, 1, moved)


def test_shards_are_brought_up_to_date_with_their_evaluation(store):
    (train,), (first, _) = of(store, "train"), of(store, "eval")
    run(store, train)
    with store.begin() as db:
        (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == first)
        assert shards.split(db, claimed, [(0, 500), (500, 1000)])
        plan = [replace(p, timeout_seconds=7.0) for p in small_plan()]
        refresh(db, plan, known_jobs(db, [p.key for p in plan]))
        parts = db.execute(select(job).where(job.c.kind == "shard").order_by(job.c.id)).all()
    assert [(p.timeout_seconds, p.spec["first"], p.spec["last"]) for p in parts] == [(7.0, 0, 500), (7.0, 500, 1000)]
    for part in parts:
        assert parse(part.spec).key() == part.key


def test_worst_cases_of_other_attacks_have_other_recipes(store):
    with store.begin() as db:
        chosen = select(job.c.recipe).where(job.c.kind == "worst")
        ours = db.execute(chosen).scalars().all()
        assert len(set(ours)) == 1 and ours[0].startswith("worst of 2 (")  # the same attacks on two models
        attacks = [AttackSpec(name="pgd", norm="Linf", eps=eps) for eps in (0.05, 0.1)]
        evals = [EvalSpec(model=ModelSpec(arch="lenet5"), data=DATA, attack=attack) for attack in attacks]
        worst = WorstSpec(evals=tuple(sorted(spec.key() for spec in evals)), norm="Linf", eps=0.1)
        plan = [Planned(s, s.key(), (), "a", "lenet5", None, "digits", 0) for s in (*evals, worst)]
        record(db, resolved("others"), plan)
        (other,) = set(db.execute(chosen).scalars()) - set(ours)
    assert other.startswith("worst of 2 (")


def test_a_study_that_is_submitted_again_is_the_latest_of_its_name(store):
    with store.begin() as db:
        newer = record(db, replace(resolved(), identity="0" * 64), small_plan()[:4]).sweep_id
        assert find_sweep(db, "small") == newer
        record(db, resolved(), small_plan())
        assert find_sweep(db, "small") == 1
        assert latest_sweeps(db) == {"small": 1}


@pytest.mark.parametrize("step", [-3600.0, -1e9, 3600.0])
def test_the_latest_study_is_the_latest_also_where_the_clock_was_set(step: float, store, monkeypatch):
    now = time.time() + step
    for module in (status, submit, probe_jobs):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now))  # and it stands still
    with store.begin() as db:
        for n in (1, 2):
            newer = record(db, replace(resolved(), identity=f"{n}" * 64), small_plan()[:4]).sweep_id
            assert find_sweep(db, "small") == newer
        record(db, resolved(), small_plan())
        assert latest_sweeps(db) == {"small": 1}
    submit_probes(store, 1)
    with store.begin() as db:
        assert list(latest_sweeps(db)) == ["probes", "small"]
