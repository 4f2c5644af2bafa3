"""Messages between a driver and its workers. Only text and plain data cross the wire."""

from dataclasses import dataclass
from typing import Any, Literal

from robustlib.gpu_failures import Failure
from robustq.jobs.queue.transitions import Claimed

Gpu = tuple[str, str]  # its node, and its number or UUID there


@dataclass(frozen=True)
class WorkerSettings:
    """What a bundle's process has to know: device, CPU threads, the artifact folder, the folder of users' modules, the
    share of a GPU that is its own, GPUs on which nothing is to run.
    """

    device: str
    threads: int
    artifacts: str
    folder: str
    gpu_share: float = 1.0
    bad_gpus: frozenset[Gpu] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a bundle runs. process: its identity (cluster/process_identity.py), since a pid may be used again.

    log: what the process prints, of which the first `log_begins` bytes are of earlier bundles.
    """

    node: str
    node_id: str
    pid: int
    process: str
    gpu_ids: str
    log: str | None
    log_begins: int = 0

    @property
    def gpu(self) -> Gpu:
        return self.node, self.gpu_ids


@dataclass(frozen=True)
class Heartbeat:
    """The worker lives."""


@dataclass(frozen=True)
class Refused:
    """The worker came to a GPU on which nothing is to run. It keeps the place, so that nobody else is sent there."""

    place: Place


@dataclass(frozen=True)
class Started:
    job: Claimed
    place: Place


@dataclass(frozen=True)
class Progressed:
    job: Claimed
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU that a job took at most, and that the GPU has."""

    peak: int
    total: int


@dataclass(frozen=True)
class Finished:
    """gpu_memory: None on a CPU."""

    job: Claimed
    row: dict[str, Any]
    examples: bytes | None
    artifacts: tuple[Any, ...]
    gpu_memory: GpuMemory | None = None


@dataclass(frozen=True)
class Failed:
    """A job raised. Only text crosses the wire: another process need not have the error's class.

    gpu: what the error says of the GPU, "crowded" where memory ran out that another process holds; the worker has then
    ended its bundle.
    """

    job: Claimed
    error_class: str
    message: str
    traceback: str
    disk_full: bool = False
    out_of_memory: bool = False
    gpu: Failure | Literal["crowded"] | None = None


Frame = Heartbeat | Refused | Started | Progressed | Finished | Failed
