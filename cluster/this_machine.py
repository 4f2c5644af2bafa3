"""This machine: the GPUs that jobs may have, and the slots that it makes. Neither Ray nor torch is loaded."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

from robustq.cluster import gpu_probe
from robustq.cluster.slots import Slots, plan_slots, usable_cpus
from robustq.jobs.errors import RunError

FORCE = "ROBUSTQ_RAY"  # docs/environment.md
VISIBLE, NONE = "CUDA_VISIBLE_DEVICES", "NoDevFiles"  # the latter hides all, as Slurm says it


def gpu_count() -> int:
    """How many GPUs there are for jobs."""
    return len(gpu_ids())


def gpu_ids() -> list[str]:
    """GPUs that Ray would hand out, as in CUDA_VISIBLE_DEVICES, found without loading it or torch."""
    found, named = nvidia_boards(), os.environ.get(VISIBLE)
    if named is None:
        return [str(number) for number in range(found)]
    # CUDA reads the list up to the first that is none: -1 alone hides all.
    ids = [] if named == NONE else named.split(",")
    ids = list(takewhile(lambda id_: id_.strip() and not id_.strip().startswith("-"), ids))
    if found and ids and all(id_.strip().startswith("MIG-") for id_ in ids):
        return ids  # slices, several of a board; Ray counts boards
    return ids[:found]


def nvidia_boards() -> int:
    """How many boards NVIDIA's driver counts, as Ray asks it; 0 where there is none."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return 0
        number = ctypes.c_uint()
        failed = nvml.nvmlDeviceGetCount_v2(ctypes.byref(number))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no driver, or one from before these calls
        return 0
    return 0 if failed else number.value


def local_slots(jobs: int, cpus_per_job: int | None, tell: Callable[[str], None] = lambda text: None) -> Slots:
    """The slots of this machine: on the GPUs that torch can use of those that Ray would hand out, on its CPUs where
    that are none. What cannot be used is told.
    """
    ids = gpu_ids()
    reasons = gpu_probe.trial(tuple(ids))
    if line := gpu_probe.told(ids, reasons):
        tell(line)
    usable = [id_ for id_, why in zip(ids, reasons, strict=True) if not why]
    slots = plan_slots(usable_cpus(), len(usable), jobs, cpus_per_job)
    return replace(slots, gpus=",".join(usable)) if 0 < len(usable) < len(ids) else slots


def gpus_of(slots: Slots) -> list[str]:
    """The GPUs on which these slots of this machine are."""
    if not slots.num_gpus:
        return []
    return slots.gpus.split(",") if slots.gpus is not None else gpu_ids()


def on_those(slots: Slots, taken: list[str], tell: Callable[[str], None]) -> Slots:
    """The slots on the GPUs that this run has taken. What a slot is stays as it was: its threads must not depend on who
    else is there.
    """
    ids = gpus_of(slots)
    if not ids or taken == ids[: slots.count]:
        return slots
    if len(taken) < slots.count:
        tell(f"GPU {', '.join(taken)} of {', '.join(ids)} is used: other robustq runs are on the rest")
    return replace(slots, count=min(slots.count, len(taken)), gpus=",".join(taken))


@contextmanager
def visible(gpus: str | None) -> Iterator[None]:
    """Only these GPUs are there for processes that are started within the block; None for those that are."""
    before = os.environ.get(VISIBLE)
    if gpus is not None:
        os.environ[VISIBLE] = gpus
    try:
        yield
    finally:
        if gpus is not None:
            os.environ.pop(VISIBLE)
            os.environ |= {} if before is None else {VISIBLE: before}


def ray_is_forced() -> bool:
    """Whether also a run for which one process is enough is to have a Ray of its own."""
    value = os.environ.get(FORCE, "")
    if value not in ("", "0", "1"):
        raise RunError(f"{FORCE}: expected 0 or 1, got {value!r}")
    return value == "1"
