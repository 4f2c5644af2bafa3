"""A sweep under random kills: every job must end for its own reason, with the results of a calm run.

    python benchmarks/chaos.py --seconds 900 --refill --store chaos.db
    python benchmarks/chaos.py --seconds 900 --refill --store postgres --drivers 3
    python benchmarks/chaos.py --seconds 600 --refill --store chaos.db --here --kinds worker,driver,raylet,gcs,store
    python benchmarks/chaos.py --seconds 600 --refill --store chaos.db --alone --kinds worker,guard,driver,store

Starts a Ray cluster of a head and two nodes on this machine, runs real trainings and attacks on it, and does harm at
random: see KINDS. One worker is frozen, and one model kills its worker each time. With --here each driver has a Ray of
its own, with --alone none: it has one slot, and a child process for its jobs. Then the same jobs run calmly, with
another store. Prints JSON.
"""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from chaos_storm import KINDS, LEASE_SECONDS, USUAL, Chaos
from chaos_studies import POISON, queue_studies
from sqlalchemy import select

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robustq.cluster.driver import leases, watchdog  # noqa: E402
from robustq.cluster.driver.drive import drive  # noqa: E402
from robustq.cluster.slots import Slots  # noqa: E402
from robustq.jobs.errors import RobustqError  # noqa: E402
from robustq.jobs.queue import claims, transitions  # noqa: E402
from robustq.jobs.queue.status import counts  # noqa: E402
from robustq.jobs.results.rows import result_rows  # noqa: E402
from robustq.jobs.store.connection import Store, open_store  # noqa: E402
from robustq.jobs.store.schema import attempt, job  # noqa: E402
from tests.helpers.postgres_server import own_server  # noqa: E402

# Here nobody waits for long: after a crash, and for a worker that says nothing.
BACKOFF_SECONDS, FROZEN_SECONDS = 0.5, 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0, help="of kills; the queue then runs to its end")
    parser.add_argument("--store", required=True, help="a new store, or postgres: on a server started for it")
    parser.add_argument("--kinds", default=USUAL, help=f"of harm, of {', '.join(KINDS)}; default: {USUAL}")
    parser.add_argument("--here", action="store_true", help="no cluster: each driver has a Ray of its own")
    parser.add_argument("--alone", action="store_true", help="no Ray: each driver has one slot and a child process")
    parser.add_argument("--folder", type=Path, default=Path("chaos"), help="for models, artifacts and logs")
    parser.add_argument("--drivers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--refill", action="store_true", help="as many seeds again whenever few jobs are left")
    parser.add_argument("--pause", type=float, default=6.0, help="seconds between kills, on average")
    parser.add_argument("--random", type=int, default=0, help="seed of the kills")
    parser.add_argument("--drive", metavar="ADDRESS", help=argparse.SUPPRESS)  # what this starts as a driver
    given = parser.parse_args()
    if given.drive is not None:
        drive_here(given.store, given.drive or None, alone=given.alone)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if "://" not in given.store and given.store != "postgres":
        given.store = str(Path(given.store).absolute())  # the drivers run in the folder
    with own_server() if given.store == "postgres" else nullcontext((given.store, None)) as (given.store, given.server):
        storm(given)


def storm(given: argparse.Namespace) -> None:
    os.environ["ROBUSTQ_RAY"] = "1" if given.here else "0"
    os.environ["ROBUSTQ_ARTIFACTS"] = str(given.folder.absolute() / "artifacts")
    (given.folder / "poison.py").write_text(POISON)
    chaos = Chaos(given)
    report = chaos.run()
    transitions.BACKOFF_SECONDS = BACKOFF_SECONDS
    calm = queue_studies(str(given.folder / "calm.db"), given, chaos.seeds)
    began = time.monotonic()
    drive(calm, cpus_per_job=1)
    report |= {"calm_seconds": round(time.monotonic() - began, 1)} | compare(calm, chaos.store)
    # Ray prints of its own to where this goes: so to a file too.
    (given.folder / "report.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report))


def drive_here(url: str, address: str | None, *, alone: bool) -> None:
    """One driver, less patient than usual; it ends as the command does, with a line."""
    transitions.BACKOFF_SECONDS, watchdog.SILENCE_SECONDS, leases.RENEW_SECONDS = BACKOFF_SECONDS, FROZEN_SECONDS, 2.0
    transitions.LEASE_SECONDS = claims.LEASE_SECONDS = LEASE_SECONDS
    try:
        slots = Slots(1, 0, 1) if alone else None
        drive(open_store(url, write=True), address=address, cpus_per_job=1, slots=slots)
    except RobustqError as error:
        sys.exit(f"robustq: {error}")


def compare(calm: Store, store: Store) -> dict[str, Any]:
    """What became of the jobs, and whether the results are those of the calm run."""
    with calm.begin() as one, store.begin() as other:
        left, right = ({row["key"]: row for row in result_rows(db)} for db in (one, other))
        columns = ("n", "clean_accuracy", "robust_accuracy", "distance_median", "distance_mean")
        differing = [
            key for key in left | right if key not in left or key not in right
            or any(left[key][name] != right[key][name] for name in columns)
        ]  # fmt: skip
        found = {
            "states": {state: n for state, n in counts(other).items() if n},
            "calm_states": {state: n for state, n in counts(one).items() if n},
            "results": len(right),
            "differing_results": len(differing),
        }
        asked = {
            "failures": "SELECT error_class, model, count(*) FROM job JOIN sweep_job ON sweep_job.job_id = job.id "
            "WHERE state = 'failed' GROUP BY error_class, model ORDER BY 1, 2",
            "attempts": "SELECT kind, outcome, count(*) FROM attempt JOIN job ON job.id = attempt.job_id "
            "GROUP BY kind, outcome ORDER BY 1, 2",
            "events": "SELECT kind, count(*) FROM event GROUP BY kind ORDER BY 1",
            "results_of_one_job": "SELECT max(n) FROM (SELECT count(*) AS n FROM result GROUP BY job_id) AS t",
        }
        for name, statement in asked.items():
            found[name] = [list(row) for row in other.exec_driver_sql(statement)]
        # What a kill costs: the attempt that ran, which is one shard, or one epoch of a training.
        lost = select(sa.func.count()).select_from(attempt.join(job, job.c.id == attempt.c.job_id))
        kinds = job.c.kind.in_(("train", "shard"))
        found["lost_attempts"] = other.execute(lost.where(kinds & (attempt.c.outcome != "done"))).scalar_one()
    return found


if __name__ == "__main__":
    main()
