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
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy import select

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from robustq.cluster.driver import leases, watchdog  # noqa: E402
from robustq.cluster.driver.drive import drive  # noqa: E402
from robustq.cluster.ray_connection import import_ray  # noqa: E402
from robustq.cluster.slots import Slots  # noqa: E402
from robustq.jobs.errors import RobustqError  # noqa: E402
from robustq.jobs.queue import claims, transitions  # noqa: E402
from robustq.jobs.queue.status import counts  # noqa: E402
from robustq.jobs.results.rows import result_rows  # noqa: E402
from robustq.jobs.store.connection import Store, open_store  # noqa: E402
from robustq.jobs.store.presence import keep  # noqa: E402
from robustq.jobs.store.schema import attempt, job  # noqa: E402
from robustq.jobs.store.sweeps import jobs_of  # noqa: E402
from robustq.jobs.study.study import Origin, Study  # noqa: E402
from robustq.jobs.submission.submit import submit  # noqa: E402
from tests.helpers.postgres_server import own_server  # noqa: E402

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
# What may happen, and how often beside the others. A raylet and a GCS server are those of a driver with --here, a guard
# is that of a worker with --alone.
KINDS = {"worker": 6, "guard": 2, "driver": 2, "node": 1, "raylet": 2, "gcs": 2, "freeze": 1, "store": 1, "postgres": 2}
USUAL = "worker,driver,node"
TRAIN = {"epochs": 4, "examples": 600, "validation_examples": 100}
# Here nobody waits for long: after a crash, and for a worker that says nothing.
BACKOFF_SECONDS, FROZEN_SECONDS, LEASE_SECONDS = 0.5, 15.0, 20.0
MANY = 1000  # times that a job may crash with --alone
FEW = 60  # jobs left, with which two workers are busy until more are queued


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


def drive_here(url: str, address: str | None, *, alone: bool) -> None:
    """One driver, less patient than usual; it ends as the command does, with a line."""
    transitions.BACKOFF_SECONDS, watchdog.SILENCE_SECONDS, leases.RENEW_SECONDS = BACKOFF_SECONDS, FROZEN_SECONDS, 2.0
    transitions.LEASE_SECONDS = claims.LEASE_SECONDS = LEASE_SECONDS
    try:
        slots = Slots(1, 0, 1) if alone else None
        drive(open_store(url, write=True), address=address, cpus_per_job=1, slots=slots)
    except RobustqError as error:
        sys.exit(f"robustq: {error}")


class Chaos:
    """A cluster with drivers on it, and somebody who kills what runs there."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.seeds = given, given.seeds
        self.store = queue_studies(given.store, given, self.seeds)
        self.random = random.Random(given.random)
        self.kills: Counter[str] = Counter()
        self.kinds = given.kinds.split(",")
        self.drivers: list[subprocess.Popen[bytes]] = []
        self.ends: Counter[int] = Counter()
        self.cluster = self.address = None
        if given.here or given.alone:
            return
        import_ray()  # with a token, which the cluster's processes inherit
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.address = self.cluster.address
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        try:
            self.keep_drivers()
            self.freeze_one()
            while time.monotonic() - began < self.given.seconds and self.unfinished():
                if self.given.refill and self.unfinished() < FEW:
                    queue_study(self.given.store, study(range(self.seeds, self.seeds + self.given.seeds)), self.given)
                    self.seeds += self.given.seeds
                time.sleep(self.random.uniform(0.5, 1.5) * self.given.pause)
                kind = self.random.choices(self.kinds, [KINDS[kind] for kind in self.kinds])[0]
                self.kills[kind] += getattr(self, f"harm_{kind}")()
                self.keep_drivers()
            killed = time.monotonic() - began
            while self.unfinished():
                time.sleep(1)
                self.keep_drivers()
            for driver in self.drivers:
                driver.wait(60)
        finally:
            for driver in self.drivers:
                driver.kill()
            if self.cluster is not None:
                self.cluster.shutdown()
        seconds = {"seconds_of_kills": round(killed, 1), "seconds": round(time.monotonic() - began, 1)}
        return {"kills": dict(self.kills), "exit_codes": dict(self.ends)} | seconds

    def unfinished(self) -> int:
        with self.store.begin() as db:
            found = counts(db)
        return sum(found[state] for state in transitions.UNFINISHED)

    def keep_drivers(self) -> None:
        """As many drivers as there should be, while there is work."""
        self.ends.update(driver.returncode for driver in self.drivers if driver.poll() is not None)
        self.drivers = [driver for driver in self.drivers if driver.poll() is None]
        command = [sys.executable, __file__, "--store", self.given.store, "--drive", self.address or ""]
        command += ["--alone"] if self.given.alone else []
        while len(self.drivers) < self.given.drivers and self.unfinished():
            with (self.given.folder / "drivers.log").open("ab") as log:
                self.drivers.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.given.folder))

    def workers(self) -> list[psutil.Process]:
        """Processes that run a bundle now: Ray gives them the name of their task."""
        if self.given.alone:
            return [child for guard in self.guards() for child in children_of(guard)]
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if line.startswith("ray::rq:") and process.info["status"] != psutil.STATUS_STOPPED:
                found.append(process)
        return found

    def guards(self) -> list[psutil.Process]:
        """Those of the drivers' workers: each has its worker for a child."""
        found = []
        for driver in self.drivers:
            with suppress(psutil.Error):
                found += children_of(psutil.Process(driver.pid))
        return found

    def harm_guard(self) -> int:
        return self.kill(self.guards())

    def harm_worker(self) -> int:
        return self.kill(self.workers())

    def harm_driver(self) -> int:
        self.random.choice(self.drivers).kill()
        return 1

    def harm_raylet(self) -> int:
        return self.kill(self.of_drivers("raylet"))

    def harm_gcs(self) -> int:
        return self.kill(self.of_drivers("gcs_server"))

    def kill(self, found: list[psutil.Process]) -> int:
        """One of them."""
        if not found:
            return 0
        with suppress(psutil.Error):
            self.random.choice(found).send_signal(signal.SIGKILL)
        return 1

    def of_drivers(self, name: str) -> list[psutil.Process]:
        """What the drivers started under that name for a Ray of their own."""
        found = []
        for driver in self.drivers:
            with suppress(psutil.Error):
                found += [child for child in psutil.Process(driver.pid).children() if child.name() == name]
        return found

    def harm_node(self) -> int:
        """A node is lost with all that runs there, and another one comes."""
        assert self.cluster is not None
        node = self.nodes.pop(self.random.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return 1

    def harm_freeze(self) -> int:
        """A driver stands still for longer than its leases, and then goes on."""
        driver = self.random.choice(self.drivers)
        driver.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_SECONDS + 5)
        driver.send_signal(signal.SIGCONT)
        return 1

    def harm_store(self) -> int:
        """Somebody deletes the file; each driver ends and keeps what it has, and the newest copy takes its place."""
        path = Path(self.given.store)
        copy = keep(self.store, path)  # in case that no driver has it open just then
        copy = copy.rename(path.with_name("copy.db"))
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        for driver in self.drivers:
            driver.wait(60)
        self.store.engine.dispose()
        kept = sorted(path.parent.glob(f"{path.stem}.kept*"), key=lambda copy: copy.stat().st_mtime)
        (kept[-1] if kept else copy).rename(path)
        self.store = open_store(self.given.store, write=True)
        return 1

    def harm_postgres(self) -> int:
        """The server restarts, in order or as after a crash; each second time it is away for a while."""
        mode = self.random.choice(["fast", "immediate"])
        self.given.server("stop", "-m", mode)
        time.sleep(self.random.choice([0, 8]))
        self.given.server("start")
        return 1

    def freeze_one(self) -> None:
        """One worker stops for good, and says so to nobody."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if found := self.workers():
                found[0].send_signal(signal.SIGSTOP)
                self.kills["frozen worker"] += 1
                return
            time.sleep(0.2)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes for jobs that another one has started and that are not stopped."""
    found = []
    with suppress(psutil.Error):
        for child in process.children():
            line = " ".join(child.cmdline())
            if "robustq.cluster.child_process" in line and child.status() != psutil.STATUS_STOPPED:
                found.append(child)
    return found


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
