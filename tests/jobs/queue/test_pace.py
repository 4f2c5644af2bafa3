"""The pace of work learnt from made-up rows, and the time left from made-up states, by hand."""

import math
import time
from typing import Any

import pytest
from sqlalchemy import insert, update

from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.queue.pace import MOST, Pace, Took, corrected, learnt_pace, weighted_median
from robustq.jobs.queue.time_left import (
    Running,
    Waiting,
    seconds_left,
    seconds_left_here,
    time_left,
    waiting_jobs,
)
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job, result, sweep_job
from tests.helpers.fake_results import add_result, add_sweep

PGD: dict[str, Any] = {
    "kind": "eval", "attack": "pgd", "method": None, "norm": "Linf", "eps": 0.1, "arch": "lenet5", "defence": None,
    "dataset": "digits", "model": "a",
}  # fmt: skip


def about(**changed: Any) -> dict[str, Any]:
    return PGD | changed


def pace_of(*rows: tuple[dict[str, Any], float, float]) -> Pace:
    """From jobs with their costs and seconds, each counting fully."""
    return Pace().learn(Took(*row) for row in rows)


def test_the_finest_group_that_has_results_counts():
    pace = pace_of((PGD, 10, 20), (about(eps=0.2), 10, 90), (about(attack="fgsm"), 10, 500), (about(arch="b"), 10, 7e3))
    assert pace.seconds(PGD, 30) == pytest.approx(60)  # two seconds a unit at this radius
    # At another radius the median of 2 and 9 on a logarithmic scale.
    assert pace.seconds(about(eps=0.3), 1) == pytest.approx(math.sqrt(2 * 9))
    # Another attack on the network, of all three there; a network that nothing is known of, by its attack.
    assert pace.seconds(about(attack="square"), 1) == pytest.approx(9)
    assert pace.seconds(about(arch="c"), 1) == pytest.approx(9)
    assert pace.seconds(about(arch="c", attack="square"), 1) == pytest.approx(math.sqrt(9 * 50))
    # Of another model of the study, with dropout perhaps, it is only the attack on such a network.
    other = pace_of((about(model="random"), 10, 500), (about(model="random", eps=0.2), 10, 500))
    assert other.seconds(PGD, 1, calibrated=2) == pytest.approx(50**0.5 * 2**0.5)
    assert Pace().seconds(PGD, 1) is None and pace.seconds(PGD, 0) == 0


def test_a_short_job_tells_nothing_of_a_far_longer_one_of_another_attack():
    """A clean pass takes what its process takes to start: 30 seconds a unit, of work that takes one."""
    pace = pace_of((about(attack="clean"), 0.1, 3))
    longer = about(attack="apgd-ce")
    assert pace.seconds(longer, 1.9) == pytest.approx(57) and pace.seconds(longer, 2.1) is None
    assert pace.seconds(longer, 2.1, calibrated=4) == 4
    # Of the same attack it tells, and so it does of many short jobs.
    assert pace.seconds(about(attack="clean"), 100) == pytest.approx(3000)
    assert pace.seconds(longer, 100, one=1.9) == pytest.approx(3000)
    waiting = [Waiting(longer, 100.0, 1.9)]
    assert seconds_left(pace, [], waiting, 2.0) == pytest.approx(1500)
    assert seconds_left(pace, [], [Waiting(longer, 100.0, 2.1)], 2.0) is None


def test_few_results_are_weighed_towards_the_calibration():
    pace = pace_of((PGD, 10, 80))
    # One result of 8 seconds a unit, a calibration of 1: at the same radius it is worth half a result, at another one.
    assert pace.seconds(PGD, 10, calibrated=10) == pytest.approx(10 * 8 ** (1 / 1.5))
    assert pace.seconds(about(eps=0.2), 10, calibrated=10) == pytest.approx(10 * 8**0.5)
    # On another attack it is worth four; on another network it alone counts.
    assert pace.seconds(about(attack="fgsm"), 10, calibrated=10) == pytest.approx(10 * 8 ** (1 / 5))
    assert pace.seconds(about(arch="b"), 10, calibrated=10) == 10
    many = pace_of(*[(PGD, 10, 80)] * 2 * MOST)
    assert many.seconds(PGD, 10, calibrated=10) == pytest.approx(10 * 8 ** (MOST / (MOST + 0.5)))


@pytest.mark.parametrize(
    ("rows", "median"),
    [
        ([(3.0, 1.0)], 3.0),
        ([(1.0, 1.0), (5.0, 1.0)], 3.0),
        ([(9.0, 1.0), (1.0, 1.0), (2.0, 1.0)], 2.0),
        ([(1.0, 0.1), (2.0, 0.1), (9.0, 1.0)], 9.0),  # two short jobs say less than a long one
    ],
)
def test_median_of_weighted_values(rows: list[tuple[float, float]], median: float):
    assert weighted_median(rows) == median


def test_what_is_done_now_corrects_what_was_learnt_before():
    before = [Took(PGD, 10, 20), Took(about(attack="fgsm"), 10, 10), Took(about(arch="b"), 10, 400)]
    # Twice as slow as before, of two jobs, which are weighed against one that has not changed.
    pace = corrected([Took(PGD, 10, 40), Took(about(attack="fgsm"), 10, 20)], before)
    assert pace.seconds(about(arch="b"), 10) == pytest.approx(400 * 2 ** (2 / 3))
    # What ran now and before counts as it is now: the median of four seconds a unit, and two made slower.
    assert pace.seconds(PGD, 10) == pytest.approx(10 * math.sqrt(4 * 2 * 2 ** (2 / 3)))
    # A job with an attack that did not run there says nothing of the others; nor does one that tells nothing.
    same = corrected([Took(about(attack="cw"), 10, 1e6), Took(PGD, 10, 0.0)], before)
    assert same.seconds(about(arch="b"), 10) == pytest.approx(400)
    assert corrected([], before).seconds(PGD, 10) == pytest.approx(20)


def test_the_store_tells_of_its_latest_results_on_a_device(made_up: Store):
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        usual: dict[str, Any] = {"arch": "lenet5", "cost": 10.0}
        for seconds in [30.0] * 2 + [50.0] * MOST:
            add_result(db, sweep_id, "a", "pgd", 0.1, device="cpu: one", seconds=seconds, **usual)
        add_result(db, sweep_id, "a", "pgd", 0.1, device="cpu: two", seconds=900.0, **usual)
        add_result(db, sweep_id, "a", "pgd", 0.1, device="cuda:0: H100", seconds=0.2, **usual)
        add_result(db, sweep_id, "a", "worst-case", 0.1, kind="worst", device="cpu: one", seconds=900.0, **usual)
        same = about(defence=None, dataset=None)
        assert learnt_pace(db, "cpu: one").seconds(same, 10) == pytest.approx(50)
        assert learnt_pace(db, "cuda").seconds(same, 10) == pytest.approx(0.2)
        assert learnt_pace(db, "tpu").seconds(same, 10) is None
        # What its checks took is part of a job, and not of the search that a row tells of.
        add_result(
            db, sweep_id, "b", "clean", None, device="cpu: one", seconds=4.0, extra={"check_seconds": 8.0}, **usual
        )
        checked = about(attack="clean", eps=None, defence=None, dataset="digits", model="b")
        assert learnt_pace(db, "cpu: one").seconds(checked, 10) == pytest.approx(12)
        odd = {"check_seconds": 8.0, "loss": math.nan}  # which SQLite takes for no JSON
        add_result(db, sweep_id, "a", "cw", None, device="cpu: one", seconds=4.0, extra=odd, **usual)
        assert learnt_pace(db, "cpu: one").seconds(checked | {"attack": "cw"}, 10) == pytest.approx(4)
        # All of it before now, and one job now that took twice as long: weighed against no change.
        db.execute(update(result).values(recorded_at=5.0))
        add_result(db, sweep_id, "a", "fgsm", 0.1, device="cpu: one", seconds=20.0, recorded_at=50.0, **usual)
        add_result(db, sweep_id, "a", "fgsm", 0.1, device="cpu: one", seconds=10.0, recorded_at=5.0, **usual)
        found = learnt_pace(db, "cpu: one", since=10.0)
        assert found.seconds(same, 10) == pytest.approx(50 * 2**0.5)


def test_a_method_of_explanations_tells_nothing_of_another(made_up: Store):
    """A unit of cost takes a hundred times as long in one: each is estimated by its own, also what waits."""
    costs = {"saliency": 1000.0, "kernel-shap": 10.0}
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        usual: dict[str, Any] = {"arch": "lenet5", "cost": 10.0, "device": "cpu: one"}
        for method, seconds in costs.items():
            spec = {"kind": "eval", "attack": {"name": "explain", "params": {"method": method}}}
            add_result(db, sweep_id, "a", "explain", 0.1, seconds=seconds, spec=spec, **usual)
        pace = learnt_pace(db, "cpu: one")
        for method, seconds in costs.items():
            asked = about(attack="explain", method=method, defence="pgd")
            assert pace.seconds(asked, 10) == pytest.approx(seconds)
            assert pace.seconds(asked, 10, calibrated=seconds) == pytest.approx(seconds)
        # Of a network that nothing is known of, too.
        assert pace.seconds(about(attack="explain", method="saliency", arch="b"), 10) == pytest.approx(1000)
        db.execute(update(job).values(state="queued"))
        waiting = {some.about["method"]: pace.seconds(some.about, some.cost) for some in waiting_jobs(db, sweep_id)}
    assert waiting == pytest.approx(costs)


def test_time_left_of_running_and_waiting_jobs():
    pace = pace_of((PGD, 1, 2))
    # 40 seconds expected; a quarter took 30, which makes 120 of all: trusted by the root of a quarter, 69.3 in all.
    part = Running(PGD, cost=20, elapsed=30, share=0.25)
    assert part.left(pace) == pytest.approx(math.sqrt(40 * 120) * 0.75)
    assert part.left(Pace()) == pytest.approx(120 * 0.75)  # nothing is known but its own progress
    assert Running(PGD, 20, elapsed=59, share=0.2).left(Pace()) is None  # of which its start may be the most
    assert Running(PGD, 20, elapsed=60, share=0.2).left(Pace()) == pytest.approx(300 * 0.8)
    silent, late = Running(PGD, 20, elapsed=10, share=0), Running(PGD, 20, elapsed=100, share=0)
    assert (silent.left(pace), late.left(pace), silent.left(Pace())) == (30, 4, None)
    # A search of three radii takes three times as long; each of its jobs has a third of the cost.
    assert Running(PGD, 20, elapsed=0, share=0, radii=3).left(pace) == 120
    waiting = [Waiting(PGD, cost=50, largest=10), Waiting(about(eps=0.2), cost=10, largest=5, slot_share=0.25)]
    # 30 of what runs, 100, and a quarter of 20.
    assert seconds_left(pace, [silent], waiting, slots=2) == pytest.approx(135 / 2)
    assert seconds_left(pace, [silent], waiting, slots=100) == 30  # no sooner than the longest
    assert seconds_left(Pace(), [], waiting, slots=2) is None
    assert seconds_left(pace, [], [], slots=2) == 0


def test_time_left_of_a_store(made_up: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustq.jobs.queue.time_left.time.time", lambda: 1000.0)
    curve = "pgd(steps=20), 2 radii as one search"
    with made_up.begin() as db:
        sweep_id = add_sweep(db, "s")
        add_result(db, sweep_id, "a", "fgsm", 0.1, arch="lenet5", cost=10.0, seconds=20.0, device="cpu: one")
        common = {
            "spec": {},
            "seed": 0,
            "arch": "lenet5",
            "norm": "Linf",
            "kind": "eval",
            "created_at": 0.0,
            "cost": 10.0,
        }
        rows: list[dict[str, Any]] = [
            {"attack": "fgsm", "eps": 0.2, "state": "queued", "bundle_key": "x"},
            {"attack": "fgsm", "eps": 0.3, "state": "blocked", "bundle_key": "x"},
            {"attack": "pgd", "eps": 0.1, "state": "running", "bundle_key": "y", "recipe": curve},
            {"attack": "pgd", "eps": 0.2, "state": "leased", "bundle_key": "y", "recipe": curve},
        ]
        for number, values in enumerate(rows):
            made = db.execute(insert(job).values(key=f"k{number}", **common, **values)).inserted_primary_key
            assert made is not None
            db.execute(insert(sweep_job).values(sweep_id=sweep_id, job_id=made[0], model="a"))
        # Two seconds a unit: 20 for each that waits, 40 for the search of two radii, whose second job ends with it.
        db.execute(update(job).where(job.c.state == "running").values(started_at=990.0))
        assert time_left(db, sweep_id, "cpu", 1) == pytest.approx(20 + 20 + 30)
        assert time_left(db, sweep_id, "cpu", 2) == pytest.approx(70 / 2)
        assert time_left(db, sweep_id, "cuda", 2) is None
        # Half of the search in 40 seconds: 80 in all, and what its kind of job takes is known from itself.
        moved = {"started_at": 960.0, "progress_done": 50, "progress_total": 100}
        db.execute(update(job).where(job.c.state == "running").values(**moved))
        assert time_left(db, sweep_id, "cpu", 1) == pytest.approx(20 + 20 + 40)
        assert time_left(db, sweep_id, "cuda", 1) == pytest.approx(40 + 40 + 40)


def test_time_left_is_asked_alike_of_every_database(store: Store):
    """Two trainings queued, four evaluations blocked, a unit of cost each; a worst case is no work."""
    with store.begin() as db:
        waiting = waiting_jobs(db, 1)
        assert sorted((row.about["kind"], row.about["arch"], row.cost) for row in waiting) == [
            ("eval", "convnet3", 1.0), ("eval", "convnet3", 1.0), ("eval", "lenet5", 1.0), ("eval", "lenet5", 1.0),
            ("train", "convnet3", 1.0), ("train", "lenet5", 1.0),
        ]  # fmt: skip
        assert time_left(db, 1, "cpu", 2) is None and seconds_left_here(db, 1) is None
        (claimed,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, claimed, "one", "here", 1, "", gpus=0.0, cpus=1.0)
        row = {"n": 1, "seconds": 4.0, "device": "cpu: one", "versions": {}}
        assert transitions.finish(db, claimed, row)
        # Four seconds a unit, of whatever network for want of better: five jobs on two slots.
        assert time_left(db, 1, "cpu", 2) == pytest.approx(10)
        (other,) = claims.claim(db, "one", most=1)
        assert transitions.start(db, other, "one", "here", 1, "")
        assert seconds_left_here(db, 1) == pytest.approx(20, abs=1)  # one runs: on one slot
        # Of a driver that died nothing runs, whatever the store still has.
        assert seconds_left_here(db, 1, ["one"]) is None
        # Beside one at work they wait, to be begun anew: all of it is left, however long they seem to have run.
        db.execute(update(job).where(job.c.id == other.id).values(started_at=time.time() - 3.9))
        (third,) = claims.claim(db, "two", most=1)
        assert transitions.start(db, third, "two", "here", 2, "")
        assert seconds_left_here(db, 1) == pytest.approx((20 - 3.9) / 2, abs=1)
        assert seconds_left_here(db, 1, ["one"]) == pytest.approx(20, abs=1)


def test_time_left_learns_from_drivers_at_work_alone(store: Store, monkeypatch: pytest.MonkeyPatch):
    """One that was killed long ago never said its end: what was done since then is still what was done before."""
    now, asked = [1000.0], []
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("robustq.jobs.queue.time_left.time_left", lambda *_, since: asked.append(since))
    with store.begin() as db:
        drivers.register(db, "killed", "here", 1, 0.0, "0", "gone")
        now[0] = 5000.0
        drivers.register(db, "at work", "here", 2, 0.0, "0", "here")
        (claimed,) = claims.claim(db, "at work", most=1)
        transitions.start(db, claimed, "at work", "here", 2, "")
        seconds_left_here(db, 1)
    assert asked == [5000.0]
