"""Arithmetic of slots and bundles, without Ray and without a GPU."""

import pytest

from cluster.resources import Slots, bundle_budget, bundle_size, plan_slots


@pytest.mark.parametrize(
    ("cpus", "gpus", "jobs", "per_job", "slots"),
    [
        (2, 0, 100, None, Slots(2, 0, 1)),
        (16, 0, 100, None, Slots(16, 0, 1)),
        (16, 0, 3, None, Slots(3, 0, 5)),  # few jobs: more threads each
        (16, 0, 1, None, Slots(1, 0, 16)),
        (16, 0, 100, 4, Slots(4, 0, 4)),
        (2, 0, 100, 8, Slots(1, 0, 8)),
        (16, 4, 100, None, Slots(4, 1, 4)),
        (16, 4, 1, None, Slots(4, 1, 4)),
        (2, 8, 100, None, Slots(8, 1, 1)),
    ],
)
def test_slots(cpus, gpus, jobs, per_job, slots):
    assert plan_slots(cpus, gpus, jobs, per_job) == slots
    assert slots.device == ("cuda" if gpus else "cpu")


@pytest.mark.parametrize(("queued", "slots", "size"), [(0, 2, 1), (1, 2, 1), (5, 2, 2), (100, 2, 25), (10_000, 2, 64)])
def test_bundles_leave_work_for_every_slot(queued, slots, size):
    assert bundle_size(queued, slots) == size


def test_a_bundle_takes_half_of_a_slots_share_of_the_work():
    assert bundle_budget(80.0, 4) == 10.0
