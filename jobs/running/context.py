"""The context of a job: where it runs, and what it hands back."""

import platform
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustlib import KERNEL_VERSION, VERSION
from robustq.jobs.store.artifacts import Artifact


@dataclass(frozen=True)
class Context:
    """Where a job runs: device ("cpu" or "cuda"), the artifact folder, hashes of the weights it needs by job key.

    folder: where files are looked for that do not lie where they lay when the job was submitted.
    """

    device: str
    artifacts: str
    folder: str = ""
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a job is: done of total units, a sentence for people."""

    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Result:
    """What a job gave: columns of its result row, per-example outcomes as Arrow bytes, files it left behind."""

    row: dict[str, Any]
    examples: bytes | None = None
    artifacts: tuple[Artifact, ...] = ()


def surroundings(context: Context) -> dict[str, Any]:
    """What the numbers were made on and with."""
    device = cpu_name() if context.device == "cpu" else torch.cuda.get_device_name(context.device)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    versions |= {"kernel": KERNEL_VERSION, "robustq": VERSION}
    if context.device != "cpu":  # whose last bits are those of its libraries
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        versions |= {"cuda": torch.version.cuda, "cudnn": str(cudnn), "gpu_driver": gpu_driver()}
    return {"device": f"{context.device}: {device}", "versions": versions}


def gpu_driver(told: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's driver, as Linux tells it; empty elsewhere."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", told.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def cpu_name() -> str:
    """The processor's name, as Linux and others tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
