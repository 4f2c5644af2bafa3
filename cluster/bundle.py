"""The remote task: a plain generator that runs a bundle of jobs in one process on one slot. Ray only carries it."""

import errno
import os
import platform
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.queue import Claimed

FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Setting:
    """What a bundle's process is told: device, CPU threads, the artifact folder, the folder users' modules lie in."""

    device: str
    threads: int
    artifacts: str
    folder: str


@dataclass(frozen=True)
class Started:
    job: Claimed
    node: str
    pid: int
    gpu_ids: str


@dataclass(frozen=True)
class Moved:
    job: Claimed
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Finished:
    job: Claimed
    row: dict[str, Any]
    examples: bytes | None
    artifacts: tuple[Any, ...]


@dataclass(frozen=True)
class Failed:
    """A job raised. Only text crosses the wire: another process need not have the error's class."""

    job: Claimed
    error_class: str
    message: str
    traceback: str
    disk_full: bool


Frame = Started | Moved | Finished | Failed


def run_bundle(claimed: list[Claimed], setting: Setting) -> Iterator[Frame]:
    """Run the jobs one after the other. Whatever a job raises is that job's result, never the worker's end."""
    prepare(setting)
    for job in claimed:
        yield Started(job, platform.node(), os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        try:
            yield from run_one(job, setting)
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in FULL
            trace = "".join(traceback.format_exception(error))
            yield Failed(job, type(error).__name__, str(error), trace, full)


def run_one(job: Claimed, setting: Setting) -> Iterator[Frame]:
    from jobs import run  # torch: in the worker only
    from jobs.specs import EvalSpec, TrainSpec, parse

    spec = parse(job.spec)
    assert isinstance(spec, TrainSpec | EvalSpec)  # worst cases are settled by the driver
    context = run.Context(device=setting.device, artifacts=setting.artifacts, weights=job.weights)
    for frame in run.run(spec, context):
        match frame:
            case run.Progress():
                yield Moved(job, frame.done, frame.total, frame.note)
            case run.Result():
                yield Finished(job, frame.row, frame.examples, frame.artifacts)


def prepare(setting: Setting) -> None:
    """Once a process: threads, and where users' modules lie."""
    import torch

    # Set here, since a reused worker keeps the number it had when torch was first loaded.
    torch.set_num_threads(setting.threads)
    if setting.folder not in sys.path:
        sys.path.append(setting.folder)  # last: a user's folder `jobs` must not stand in for ours
