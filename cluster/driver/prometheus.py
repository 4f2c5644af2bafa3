"""Metrics of a driver for Prometheus, through Ray's own metrics: jobs by state, slots, work done and left."""

from typing import Any

from robustq.cluster.driver.state import Driver, Totals


class Metrics:
    """Gauges under the names ray_robustq_jobs, ray_robustq_slots and ray_robustq_cost, by driver."""

    def __init__(self, driver: Driver):
        from ray.util.metrics import Gauge

        self.driver = driver
        self.shown: Totals | None = None
        self.jobs = Gauge("robustq_jobs", "Jobs of the store or sweep by state.", ("driver", "state"))
        self.slots = Gauge("robustq_slots", "Slots of the cluster: all of them, and those at work.", ("driver", "kind"))
        self.cost = Gauge("robustq_cost", "Estimated cost of the jobs done and left, in units.", ("driver", "kind"))

    def show(self, totals: Totals) -> None:
        """Tell what is known, where it is not what was told already."""
        if totals is self.shown:
            return
        self.shown = totals
        for state, n in totals.counts.items():
            self.set(self.jobs, "state", state, n)
        self.set(self.slots, "kind", "all", self.driver.slots.count)
        self.set(self.slots, "kind", "busy", self.driver.slots.count - self.driver.free_slots)
        self.set(self.cost, "kind", "done", totals.costs.done)
        self.set(self.cost, "kind", "left", totals.costs.left)

    def set(self, gauge: Any, tag: str, name: str, value: float) -> None:
        gauge.set(value, tags={"driver": self.driver.id[:8], tag: name})
