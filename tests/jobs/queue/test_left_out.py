"""Jobs that a budget left out: out of the queue, in their sweep, back when they are asked for."""

import json
from pathlib import Path

import pytest
from sqlalchemy import select, update

from robustq.jobs.commands import queue_actions, results_text
from robustq.jobs.errors import JobsFailed, SpecError
from robustq.jobs.queue import claims, left_out, shards, user_actions
from robustq.jobs.queue.status import counts
from robustq.jobs.report.write import write_report
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job
from robustq.jobs.submission.budget import Budget, Cut
from robustq.jobs.submission.submit import again, keep_to, record, record_within
from robustq.jobs.submission.wall_time import Slots
from tests.helpers.small_store import resolved, small_plan

BUDGET = Budget(7200.0, "2h", lambda jobs, gpus: Slots(1, 1))


WITHOUT = "left out of the budget of 2h: training of b; fgsm Linf 0.1 of b; pgd Linf 0.1 of b; worst-case Linf 0.1 of b"


def states(store: Store) -> dict[str, int]:
    with store.begin() as db:
        return {state: n for state, n in counts(db).items() if n}


def cut_off(store: Store, kept: int = 4) -> str:
    """Submit the small study anew with a budget that holds its first jobs; what is told of that."""
    plan = small_plan()
    with store.begin() as db:
        cut = Cut(plan[:kept], plan[kept:], 60.0, 5400.0, {planned.key: 100.0 * i for i, planned in enumerate(plan)})
        return keep_to(db, record(db, resolved(), plan), BUDGET, cut).line


@pytest.mark.slow
def test_what_a_budget_leaves_out_waits_for_a_submission_without_one(store: Store):
    told = cut_off(store)
    assert told == (
        "sweep small: 8 jobs, 0 of them new; 4 of them, 1 h 30 min of work, are left out of the budget of 2h: "
        "submitting the study without --budget, or robustq retry --sweep small, queues them"
    )
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}
    with store.begin() as db:
        assert left_out.count_left_out(db, 1) == 4
        (claimed,) = claims.claim(db, "one", most=9)
        assert claimed.spec["model"]["arch"] == "lenet5" and claims.claim(db, "two", most=9) == []
        # A smaller budget leaves out more, a larger one takes some in; the same study without one the rest.
        found = again(db, 1, "small")
        assert (found.taken_in, left_out.count_left_out(db, 1)) == (4, 0)
        assert found.line == "sweep small: 8 jobs, 0 of them new, 4 that a budget had left out"
    assert states(store) == {"queued": 1, "blocked": 6, "leased": 1}


def test_another_budget_takes_in_what_it_holds(store: Store):
    cut_off(store, kept=1)
    assert states(store) == {"queued": 1, "cancelled": 7}
    cut_off(store, kept=5)
    assert states(store) == {"queued": 2, "blocked": 3, "cancelled": 3}


def test_a_retry_of_the_sweep_queues_what_was_left_out(store: Store):
    cut_off(store)
    assert queue_actions.retry(store, [], "small") == 4
    assert states(store) == {"queued": 2, "blocked": 6}


def test_what_another_sweep_wants_stays_in_the_queue(store: Store):
    with store.begin() as db:
        record(db, resolved("other"), small_plan()[4:6])
    cut_off(store)
    assert states(store) == {"queued": 2, "blocked": 4, "cancelled": 2}
    with store.begin() as db:
        assert left_out.count_left_out(db, 1) == 2
        # One that comes later takes them in.
        record(db, resolved("third"), small_plan())
    assert states(store) == {"queued": 2, "blocked": 6}


def test_what_two_budgets_leave_out_is_in_no_queue(store: Store):
    plan = small_plan()
    cut = Cut(plan[:4], plan[4:], 60.0, 5400.0)
    with store.begin() as db:
        for name in ("small", "other", "small"):
            told = record_within(db, resolved(name), plan, BUDGET, cut)
            left = "; 4 of them, 1 h 30 min of work, are left out of the budget of 2h: "
            assert told.line.startswith(f"sweep {name}: 8 jobs, 0 of them new{left}") and told.out == 4
            assert told.line.endswith(", queues them")
    assert states(store) == {"queued": 1, "blocked": 3, "cancelled": 4}
    with store.begin() as db:  # this one wants them all, and so they stay
        record(db, resolved("third"), plan)
        told = record_within(db, resolved(), plan, BUDGET, cut).line
    why = "they run already, or another sweep wants them too"
    assert told == f"sweep small: 8 jobs, 0 of them new; 4 that do not fit into 2h stay: {why}"
    with store.begin() as db:
        told = record_within(db, resolved(), plan, BUDGET, Cut(plan[:7], plan[7:], 60.0, 5400.0)).line
    assert told.endswith("; 1 that does not fit into 2h stays: it runs already, or another sweep wants it too")
    assert states(store) == {"queued": 2, "blocked": 6}


def test_what_was_cancelled_by_hand_is_not_queued_by_a_budget(store: Store):
    with store.begin() as db:
        mine = db.execute(select(job.c.id).where(job.c.attack == "fgsm").order_by(job.c.id)).scalars().first()
        user_actions.cancel(db, [mine])
    cut_off(store)
    with store.begin() as db:
        assert again(db, 1, "small").taken_in == 4
    assert states(store) == {"queued": 2, "blocked": 4, "cancelled": 2}  # it and its worst case


def test_a_partial_sweep_is_no_failure_and_says_that_it_is_one(sqlite_store: Store):
    cut_off(sqlite_store)
    with sqlite_store.begin() as db:
        db.execute(update(job).where(job.c.state != "cancelled").values(state="done"))
    queue_actions.raise_failures(sqlite_store, 1)
    line = "small is partial: 4 of 8 jobs were left out of a budget; robustq retry --sweep small, or the study "
    assert results_text.closing_lines(sqlite_store, 1).splitlines() == [
        line + "submitted without --budget, queues them",
        WITHOUT,
    ]
    status = queue_actions.status_text(sqlite_store, "small", as_json=False)
    told = "4 of the cancelled were left out of a budget (robustq retry --sweep small queues them)"
    assert status.splitlines()[:2] == [f"4 done, 4 cancelled; {told}", WITHOUT]
    with sqlite_store.begin() as db:
        some = db.execute(select(job.c.id).where(job.c.state == "done")).scalars().first()
        db.execute(update(job).where(job.c.id == some).values(state="cancelled"))
    with pytest.raises(JobsFailed, match=r"^1 job was cancelled"):
        queue_actions.raise_failures(sqlite_store, 1)


def test_shards_of_what_was_left_out_are_left_out_too(sqlite_store: Store, tmp_path: Path):
    """An evaluation that was split before the study came again with a budget: nobody cancelled its shards."""
    with sqlite_store.begin() as db:
        db.execute(update(job).where(job.c.kind == "train").values(state="done"))
        (mine,) = db.execute(select(job.c.id).where(job.c.attack == "pgd").order_by(job.c.id).limit(1)).scalars()
        db.execute(update(job).where(job.c.id == mine).values(state="queued"))
        (claimed,) = claims.claim(db, "one", most=1, what=job.c.id == mine)
        assert shards.split(db, claimed, [(0, 500), (500, 1000)])
    cut_off(sqlite_store, kept=0)
    assert states(sqlite_store) == {"done": 2, "cancelled": 8}
    with sqlite_store.begin() as db:
        assert (left_out.count_left_out(db, 1), len(left_out.left_out_jobs(db, 1))) == (8, 6)
    queue_actions.raise_failures(sqlite_store, 1)
    mend = "no results yet: 8 jobs were left out of a budget: robustq retry --sweep small queues them$"
    with pytest.raises(SpecError, match=mend):
        write_report(sqlite_store, "small", tmp_path / "r.html", None)
    with sqlite_store.begin() as db:
        db.execute(update(job).where(job.c.id == mine).values(error_class=None))
    mend = "no results yet: 1 job failed or was cancelled and 7 jobs were left out of a budget: robustq retry --sweep"
    with pytest.raises(SpecError, match=mend + " small queues them again$"):
        write_report(sqlite_store, "small", tmp_path / "r.html", None)
    with sqlite_store.begin() as db:
        db.execute(update(job).where(job.c.id == mine).values(state="queued"))
    with pytest.raises(SpecError, match=r"no results yet: robustq drive --sweep small runs it$"):
        write_report(sqlite_store, "small", tmp_path / "r.html", None)


def test_a_sweep_keeps_what_was_left_out_of_which_budget_and_why(store: Store):
    """Also once the rest is done; the same study without a budget queues these and no others."""
    cut_off(store)
    with store.begin() as db:
        db.execute(update(job).where(job.c.state != "cancelled").values(state="done"))
        found = left_out.left_out_jobs(db, 1)
        assert [(one["kind"], one["attack"], one["model"], one["eps"]) for one in found] == [
            ("train", None, "b", None),
            ("eval", "fgsm", "b", 0.1),
            ("eval", "pgd", "b", 0.1),
            ("worst", "worst-case", "b", 0.1),
        ]
        took = ("6 min 40 s", "8 min 20 s", "10 min 00 s", "11 min 40 s")
        assert [one["why"] for one in found] == [f"left out of a budget of 2h: expected to take {t}" for t in took]
        assert {one["budget"] for one in found} == {"2h"} and left_out.left_out_words(db) == [WITHOUT]
    told = json.loads(queue_actions.status_text(store, "small", as_json=True))
    assert (told["left_out"], told["left_out_jobs"]) == (4, found)
    assert "left out of a budget of 2h: expected to take 6 min 40 s" in queue_actions.log_text(
        store, found[0]["id"], as_json=False
    )
    with store.begin() as db:
        again(db, 1, "small")
        waits = db.execute(select(job.c.id).where(job.c.state.in_(("queued", "blocked"))).order_by(job.c.id)).scalars()
        assert list(waits) == [one["id"] for one in found] and left_out.left_out_words(db) == []
    assert states(store) == {"done": 4, "queued": 1, "blocked": 3}


def test_many_that_were_left_out_are_named_in_few_words():
    models = {f"m{i}": 2 for i in range(6)}
    parts = {f"pgd Linf {i}": models for i in range(left_out.MOST_PARTS)} | {"nes": {"a": 1}, "spsa": {"a": 1, "b": 1}}
    radii = {("pgd Linf", eps): {"a": 1, "b": 1} for eps in ("0.1", "0.2")}
    radii |= {("pgd Linf", "0.3"): {"a": 1}, ("training", ""): {"a": 1}}
    merged = {"pgd Linf 0.1, 0.2": {"a": 2, "b": 2}, "pgd Linf 0.3": {"a": 1}, "training": {"a": 1}}
    assert left_out.with_radii(radii) == merged
    told = left_out.parts_text(parts).split("; ")
    assert told[0] == "pgd Linf 0 of m0, m1, m2, m3 and 2 more (12 jobs)" and told[-1] == "3 jobs more"
    assert len(told) == left_out.MOST_PARTS + 1
    assert left_out.why_left_out("2h", float("inf")) == "left out of a budget of 2h: nobody knows how long"
