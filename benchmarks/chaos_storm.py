"""A storm over a queue (chaos.py): a cluster with drivers on it, and somebody who kills what runs there."""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from chaos_studies import queue_studies, queue_study, study

from robustq.cluster.ray_connection import import_ray
from robustq.jobs.queue import transitions
from robustq.jobs.queue.status import counts
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.presence import keep

SCRIPT = Path(__file__).with_name("chaos.py")  # which is a driver with --drive
# What may happen, and how often beside the others. A raylet and a GCS server are those of a driver with --here, a guard
# is that of a worker with --alone.
KINDS = {"worker": 6, "guard": 2, "driver": 2, "node": 1, "raylet": 2, "gcs": 2, "freeze": 1, "store": 1, "postgres": 2}
USUAL = "worker,driver,node"
LEASE_SECONDS = 20.0  # here nobody waits for long
FEW = 60  # jobs left, with which two workers are busy until more are queued


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
        command = [sys.executable, str(SCRIPT), "--store", self.given.store, "--drive", self.address or ""]
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
