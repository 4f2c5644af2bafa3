"""The slots and the budget of a study that is yet to run."""

import pytest

from robustq.cluster import study_slots
from robustq.cluster.study_slots import make_budget, slots_here
from robustq.jobs.submission.wall_time import Slots


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(study_slots, "usable_cpus", lambda: 8)


def test_a_study_has_the_slots_that_its_driver_will_plan():
    assert slots_here(4, 0) == Slots(4, 2)
    assert slots_here(100, 0) == Slots(8, 1)
    assert slots_here(100, 2) == Slots(2, 4)
    assert slots_here(100, 0, 4) == Slots(2, 4)


def test_a_budget_on_a_cluster_is_of_one_slot():
    here, there = make_budget("1.5h"), make_budget("1.5h", 2, on_cluster=True)
    assert here is not None and there is not None and make_budget(None) is None
    assert (here.seconds, here.text, here.find_slots(100, 0)) == (5400, "1.5h", Slots(8, 1))
    assert there.find_slots(100, 0) == Slots(1, 2)
