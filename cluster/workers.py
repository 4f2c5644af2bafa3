"""Workers as their driver knows them, whoever carries the bundles: Ray, or child processes of the driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from robustq.cluster.messages import Frame, Place, WorkerSettings
from robustq.cluster.slots import Slots
from robustq.jobs.queue.transitions import Claimed

Stream = Any  # of a bundle's frames: what `launch` returned, to be known by `is`


@dataclass(frozen=True)
class End:
    """The end of a bundle. reason: why its worker died, empty where all was done.

    cannot_load: the worker was never able to run anything, as every other one would be.
    """

    reason: str = ""
    cannot_load: bool = False


class Workers(Protocol):
    """Whatever runs bundles. on_cluster: on machines of its own; else on the driver's, and for this driver alone."""

    on_cluster: bool

    def launch(self, claimed: list[Claimed], settings: WorkerSettings, slots: Slots) -> Stream:
        """Send off a bundle, which gets the share of a slot that its settings say."""
        ...

    def collect(
        self, running: Sequence[tuple[Stream, Place | None]], seconds: float
    ) -> tuple[list[tuple[Stream, Frame]], list[tuple[Stream, End]]]:
        """Frames that come within so many seconds, and bundles that end; earlier where all have ended.

        Each running bundle with the place where it runs, once that is known.
        """
        ...

    def stop(self, stream: Stream, place: Place | None) -> None:
        """End a bundle's worker at once, also one that hears nothing any more."""
        ...

    def lost(self) -> str | None:
        """What has died of that which carries the bundles, None where all is well. Quick to ask."""
        ...

    def slots_now(self, slots: Slots) -> Slots | None:
        """The slots as the machines are now, of the kind that these are; None where that cannot be told, or where they
        stay as they are.
        """
        ...

    def has_ended(self, stream: Stream) -> bool:
        """Whether a bundle that says nothing more has gone with its machine."""
        ...
