"""Jobs that do nothing but hold a slot: to measure a queue, and to try a cluster before it is trusted."""

import time
import uuid

import sqlalchemy as sa

from robustq.jobs.queue.shards import SECONDS_A_UNIT
from robustq.jobs.queue.status import latest_moment
from robustq.jobs.specs import ProbeSpec
from robustq.jobs.store.bulk_insert import add_jobs, insert_new
from robustq.jobs.store.connection import Store
from robustq.jobs.store.schema import sweep, sweep_job


def submit_probes(store: Store, n: int, seconds: float = 0.0) -> int:
    """Queue n probes of so many seconds each, in a sweep of their own; returns its number. They leave rows without
    accuracies, and no outcomes.
    """
    run, now = uuid.uuid4().hex, time.time()
    rows = []
    for number in range(n):
        spec = ProbeSpec(number=number, seconds=seconds)
        rows.append(
            {
                "key": f"{run}{number:032x}",  # never that of an earlier one: a probe is to run each time
                "kind": "probe",
                "spec": spec.model_dump(mode="json"),
                "seed": 0,
                "bundle_key": "0" * 64,
                "cost": seconds / SECONDS_A_UNIT["cuda"],
                "state": "queued",
                "created_at": now,
            }
        )
    with store.begin() as db:
        values = {"name": "probes", "spec": {}, "identity": f"probes-{run}", "created_at": latest_moment(db)}
        sweep_id = db.execute(sa.insert(sweep).values(**values).returning(sweep.c.id)).scalar_one()
        members = [{"sweep_id": sweep_id, "job_id": id_, "model": "probe"} for id_, _ in add_jobs(db, rows).values()]
        insert_new(db, sweep_job, members)
    return sweep_id
