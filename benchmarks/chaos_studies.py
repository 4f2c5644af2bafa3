"""The studies of a storm (chaos.py): real trainings and attacks, and one job that kills its worker each time."""

import argparse

import sqlalchemy as sa

from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import job
from robustq.jobs.store.sweeps import jobs_of
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit

POISON = """
import os, signal, sys
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        if any(name in sys.argv[0] for name in ("default_worker", "child_process")):
            os.kill(os.getpid(), signal.SIGKILL)
        return x.flatten(1)[:, :10]

def poison(): return Net()
"""
TRAIN = {"epochs": 4, "examples": 600, "validation_examples": 100}
MANY = 1000  # times that a job may crash with --alone


def study(seeds: range) -> Study:
    """seeds: of each of two networks. Six jobs a seed and network, whose three evaluations are split in three."""
    entries = {
        "name": f"chaos-{seeds.start}",
        "models": {
            "a": {"arch": "lenet5", "train": TRAIN},
            "b": {"arch": "convnet3", "train": TRAIN | {"objective": "fgsm", "eps": 0.1}},
        },
        "attacks": [{"name": "pgd", "steps": 40, "eps": [0.05, 0.1]}, {"name": "square", "queries": 200, "eps": 0.1}],
        "seeds": list(seeds),
        "examples": 300,
        "shards": 3,
    }
    return Study.model_validate(entries)


def poison_study() -> Study:
    """One job that kills its worker each time."""
    entries = {"name": "poison", "models": {"poison": {"file": "poison.py:poison"}}, "attacks": [{"name": "fgsm"}]}
    return Study.model_validate(entries)


def queue_studies(url: str, given: argparse.Namespace, seeds: int) -> Store:
    """The poison job and the studies of the first seeds, as many to a study as given."""
    store = queue_study(url, poison_study(), given)
    for first in range(0, seeds, given.seeds):
        queue_study(url, study(range(first, first + given.seeds)), given)
    return store


def queue_study(url: str, part: Study, given: argparse.Namespace) -> Store:
    store, submitted = submit(url, part, Origin("chaos", {}, {}), given.folder, data_folder=given.folder)
    if given.alone and part.name != "poison":  # where there is one slot, every kill meets the job that runs
        with store.begin() as db:
            db.execute(sa.update(job).where(job.c.id.in_(jobs_of(submitted.sweep_id))).values(max_crashes=MANY))
    return store
