"""Errors of GPUs in CUDA's words, and frames of workers that met them. No GPU is at work."""

from typing import Any

from robustq.cluster.messages import Failed, Place, WorkerSettings
from robustq.jobs.queue.transitions import Claimed

FIRST, SECOND = ("here", "0"), ("here", "1")
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
ILLEGAL = "CUDA error: an illegal memory access was encountered"
ECC = "CUDA error: uncorrectable ECC error encountered"
BUSY = "CUDA error: all CUDA-capable devices are busy or unavailable"
ON_GPU = WorkerSettings("cuda", 1, "", "")


def place(gpu: tuple[str, str]) -> Place:
    return Place(gpu[0], "n", 1, "p", gpu[1], None)


def a_job(number: int, model: str = "a") -> Claimed:
    return Claimed(number, f"{number:064x}", 1, "eval", {"model": {"arch": model}}, {})


def raised(number: int, gpu: Any, model: str = "a") -> Failed:
    return Failed(a_job(number, model), "AcceleratorError", ILLEGAL if gpu == "lost" else ECC, "", gpu=gpu)
