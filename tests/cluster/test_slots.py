"""Arithmetic of slots and bundles, without Ray and without a GPU."""

import pytest

from robustq.cluster.slots import Slots, bundle_budget, bundle_size, cluster_slots, next_share, plan_slots, share_for


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


@pytest.mark.parametrize(("queued", "slots", "size"), [(0, 2, 1), (1, 2, 1), (5, 2, 3), (100, 2, 50), (10_000, 2, 64)])
def test_bundles_leave_work_for_every_slot(queued, slots, size):
    assert bundle_size(queued, slots) == size


def test_a_bundle_takes_half_of_a_slots_share_of_the_work():
    assert bundle_budget(80.0, 4) == 10.0
    assert bundle_budget(80.0, 4, least=5.0) == 10.0
    assert bundle_budget(80.0, 4, least=15.0) == 15.0
    assert bundle_budget(80.0, 4, least=100.0) == 20.0  # never more than a share, so that every slot gets some
    assert bundle_budget(0.0, 4) == float("inf")


@pytest.mark.parametrize(
    ("nodes", "jobs", "per_job", "slots"),
    [
        ([(16, 0), (16, 0)], 100, None, Slots(32, 0, 1)),
        ([(16, 0), (16, 0)], 4, None, Slots(4, 0, 8)),
        ([(2, 0), (16, 0)], 2, None, Slots(9, 0, 2)),  # a bundle must fit on any node
        ([(0, 0), (4, 0)], 100, 2, Slots(2, 0, 2)),  # a head that computes nothing
        ([(8, 0), (16, 4), (32, 4)], 100, None, Slots(8, 1, 4)),
        ([], 1, None, Slots(1, 0, 1)),
    ],
)
def test_slots_of_a_cluster(nodes, jobs, per_job, slots):
    assert cluster_slots(nodes, jobs, per_job) == slots


GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "share"),
    [(0, 1 / 8), (7 * GIB, 1 / 8), (8 * GIB, 1 / 4), (30 * GIB, 1 / 2), (60 * GIB, 1), (200 * GIB, 1)],
)
def test_the_share_that_holds_what_was_needed(peak, share):
    assert share_for(peak, 80 * GIB) == share


def test_shares_grow_to_a_whole_gpu():
    assert [next_share(share) for share in (1 / 8, 1 / 4, 1 / 2, 1.0)] == [1 / 4, 1 / 2, 1.0, None]
    on_gpus, on_cpus = Slots(2, 1, 4), Slots(2, 0, 4)
    assert (on_gpus.share(None), on_gpus.share(0.25), on_cpus.share(0.25)) == (1.0, 0.25, 1.0)
    assert (on_gpus.smallest, on_cpus.smallest) == (1 / 8, 1.0)
