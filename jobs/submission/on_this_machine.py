"""Estimates of a study's jobs on this machine: its device, its slots, and what the store knows of them."""

import time
from collections.abc import Sequence

import torch
from sqlalchemy import select

from robustlib.inference.throughput import Clock
from robustq.jobs.queue.pace import Pace, learnt_pace
from robustq.jobs.running.context import Context, surroundings
from robustq.jobs.store.connection import open_store, store_exists
from robustq.jobs.store.schema import job
from robustq.jobs.submission.budget import Budget, Cut, cut, known_seconds
from robustq.jobs.submission.calibration import Calibrations
from robustq.jobs.submission.expected import Estimator, estimator
from robustq.jobs.submission.plan import Planned, Resolved
from robustq.jobs.submission.wall_time import FindSlots, Slots


def one_slot(jobs: int, gpus: int) -> Slots:
    return Slots(1, torch.get_num_threads())


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def slots_for(plan: Sequence[Planned], find_slots: FindSlots) -> Slots:
    """The slots that jobs of this plan will have."""
    kinds = [planned.spec.kind for planned in plan]
    gpus = torch.cuda.device_count() if device_here().type == "cuda" else 0
    return find_slots(max(1, kinds.count("train"), kinds.count("eval")), gpus)


def make_estimator(
    url: str, resolved: Resolved, plan: Sequence[Planned], slots: Slots, clock: Clock = time.perf_counter
) -> Estimator:
    """What these jobs take here, by what the store knows of this machine's device and by calibrations."""
    device = device_here()
    pace, done = Pace(), frozenset[str]()
    if store_exists(url):
        with open_store(url).begin() as db:
            done = frozenset(db.execute(select(job.c.key).where(job.c.state == "done")).scalars())
            pace = learnt_pace(db, surroundings(Context(str(device), ""))["device"])
    return estimator(resolved, plan, Calibrations(resolved.data, device, slots.threads, clock), pace=pace, done=done)


def cut_to_budget(url: str, resolved: Resolved, plan: Sequence[Planned], budget: Budget) -> Cut:
    """What of a plan fits into a budget, on the slots that it has."""
    slots = slots_for(plan, budget.find_slots)
    seconds = known_seconds(plan, make_estimator(url, resolved, plan, slots).seconds)
    return cut(plan, seconds, budget.seconds, slots.count)
