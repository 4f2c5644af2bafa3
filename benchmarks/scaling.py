"""The speedup by more slots for jobs that sleep: whatever is missing from it is the queue's own cost.

    python benchmarks/scaling.py --slots 1,8,64 --seconds 5 --jobs-a-slot 40
    python benchmarks/scaling.py --simulate 256

GPUs are Ray's simulated ones, on one machine: every slot is a worker process of its own, as with real GPUs, but all of
them share this machine's cores, which real nodes would not. `--simulate` runs no worker at all: claims, frames and
records go through the real store and the real driver's code, while a clock that only this program turns says when a job
ends. Its assumptions: a worker is there START seconds after it was sent off; a frame reaches the driver at once; the
driver's own work takes as long as it takes here.
"""

import argparse
import heapq
import json
import tempfile
import time
from pathlib import Path

from robustq.cluster.driver.drive import drive
from robustq.cluster.slots import GPU_BUNDLE_SECONDS, Slots, bundle_budget, bundle_size
from robustq.jobs.queue import drivers, transitions
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.probe_jobs import submit_probes
from robustq.jobs.queue.shards import SECONDS_A_UNIT
from robustq.jobs.queue.status import costs, counts
from robustq.jobs.store.connection import Store, open_store

START = 5.0  # seconds from sending a bundle off to its first job: a process, torch, a CUDA context
ROW = {"n": 0, "seconds": 0.0, "device": "simulated", "versions": {}}


def new_store(folder: str) -> Store:
    return open_store(str(Path(folder) / "r.db"), create=True, write=True)


def measured(slots: int, seconds: float, jobs_a_slot: int) -> dict[str, float]:
    """Real workers that sleep: from the first claim to the last result, and work done a second of that."""
    n = slots * jobs_a_slot
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(folder)
        sweep_id = submit_probes(store, n, seconds)
        drive(store, sweep_id=sweep_id, slots=Slots(slots, 1, 0))
        with store.begin() as db:
            began, ended = db.exec_driver_sql("SELECT min(started_at), max(ended_at) FROM attempt").one()
        store.engine.dispose()
    return {"slots": slots, "jobs": n, "seconds": ended - began, "speedup": n * seconds / (ended - began)}


def simulated(slots: int, seconds: float, jobs_a_slot: int) -> dict[str, float]:
    """A driver at this many slots, its workers and the time between its turns made up."""
    n = slots * jobs_a_slot
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(folder)
        sweep_id = submit_probes(store, n, seconds)
        with store.begin() as db:
            drivers.register(db, "one", "here", 1, 0.0, "0")
        clock, free, busy = 0.0, slots, []  # busy: (when a job ends, a number to tell them apart, rest of the bundle)
        number, done, spent = 0, 0, 0.0
        while done < n:
            before = time.perf_counter()
            with store.begin() as db:
                while free and (claimed := next_bundle(db, sweep_id, slots)):
                    free -= 1
                    number += 1
                    heapq.heappush(busy, (clock + START + seconds, number, claimed))
            took = time.perf_counter() - before
            ready = [heapq.heappop(busy)]
            while busy and busy[0][0] <= ready[0][0] + 0.2:  # what a driver finds at one turn
                ready.append(heapq.heappop(busy))
            before = time.perf_counter()
            with store.begin() as db:
                for end, _, (first, *rest) in ready:
                    transitions.start(db, first, "one", "node", 1, "0")
                    transitions.finish(db, first, ROW)
                    done += 1
                    if rest:
                        number += 1
                        heapq.heappush(busy, (end + seconds, number, rest))
                    else:
                        free += 1
            took += time.perf_counter() - before
            clock = max(clock + took, ready[-1][0])
            spent += took
        store.engine.dispose()
    return {
        "slots": slots, "jobs": n, "seconds": clock, "speedup": n * seconds / clock, "driver_share": spent / clock,
    }  # fmt: skip


def next_bundle(db, sweep_id: int, slots: int) -> list[transitions.Claimed]:
    most = bundle_size(counts(db, sweep_id)["queued"], slots)
    budget = bundle_budget(costs(db, sweep_id)[1], slots, GPU_BUNDLE_SECONDS / SECONDS_A_UNIT["cuda"])
    return claim(db, "one", most=most, sweep_id=sweep_id, budget=budget, gpu_share=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=5.0, help="that a job sleeps")
    parser.add_argument("--jobs-a-slot", type=int, default=40)
    parser.add_argument("--simulate", type=int, help="a simulation of so many slots instead")
    given = parser.parse_args()
    if given.simulate:
        print(json.dumps(simulated(given.simulate, given.seconds, given.jobs_a_slot)))
        return
    for slots in map(int, given.slots.split(",")):
        print(json.dumps(measured(slots, given.seconds, given.jobs_a_slot)), flush=True)


if __name__ == "__main__":
    main()
