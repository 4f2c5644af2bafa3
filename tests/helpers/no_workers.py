"""Workers of a driver on which nothing runs."""

from collections.abc import Sequence
from typing import Any

from robustq.cluster.slots import Slots


class NoWorkers:
    """As a driver knows them. stopped: bundles that it wanted to end."""

    on_cluster = False

    def __init__(self) -> None:
        self.stopped: list[Any] = []

    def launch(self, claimed: Any, settings: Any, slots: Slots) -> Any:
        raise AssertionError("nothing runs here")

    def collect(self, running: Sequence[Any], seconds: float) -> tuple[list[Any], list[Any]]:
        return [], []

    def stop(self, stream: Any, place: Any) -> None:
        self.stopped.append(stream)

    def lost(self) -> str | None:
        return None

    def slots_now(self, slots: Slots) -> Slots | None:
        return None

    def has_ended(self, stream: Any) -> bool:
        return False
