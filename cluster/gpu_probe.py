"""A trial of the GPUs that Ray counts: torch multiplies on each of them, in a process as workers are."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from robustlib.gpu_failures import named
from robustq.cluster.last_words import last_line, shorten

MOST_SECONDS = 180.0  # to load torch from a slow disk and to begin on each GPU
CODE = """
import sys
import torch
try:
    if torch.version.hip is not None:
        raise RuntimeError(f"torch is built for ROCm {torch.version.hip}, on which no number was ever checked")
    n = torch.cuda.device_count()
    for i in range(n):
        x = torch.ones(16, 16, device=f"cuda:{i}")
        found = (x @ x).sum().item()
        if found != 16**3:
            raise RuntimeError(f"GPU {i} multiplies wrongly: {found} instead of {16**3}")
    if n == 0:
        torch.ones(1).cuda()  # says why
        raise RuntimeError("torch sees no GPU")
except Exception as error:
    sys.exit(f"{type(error).__name__}: " + str(error).strip().partition("\\n")[0])
print(n)
"""


@lru_cache
def trial(gpus: tuple[str, ...]) -> tuple[str, ...]:
    """Why torch cannot use each of the GPUs, in a line; empty where it can. gpus: their numbers or names, as in
    CUDA_VISIBLE_DEVICES.

    Asked once a process. A build of torch without CUDA, too old a driver, a card that torch has no kernels for. First
    all in one process; where that finds a fault, or other GPUs than these, each alone, as a worker has it.
    """
    if not gpus:
        return ()
    if (why := reason_against(gpus)) is None:
        return ("",) * len(gpus)
    if len(gpus) == 1:
        return (why,)
    with ThreadPoolExecutor(len(gpus)) as side_by_side:
        return tuple(why or "" for why in side_by_side.map(lambda one: reason_against((one,)), gpus))


def reason_against(gpus: tuple[str, ...]) -> str | None:
    """Why torch cannot use these GPUs in one process; None where it can."""
    try:
        # -P: else the current folder is on its path, and a user's `random.py` stands in for Python's.
        done = subprocess.run(
            [sys.executable, "-P", "-c", CODE],
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)},
        )
    except subprocess.TimeoutExpired:
        return f"a product of two matrices took them more than {MOST_SECONDS:g} seconds"
    except OSError as error:
        return f"Python cannot be started to try them: {error}"
    if done.returncode == 0:
        seen = last_line(done.stdout)
        return None if seen == str(len(gpus)) else f"torch sees {seen} of {len(gpus)} GPUs"
    if len(gpus) == 1 and is_taken(done.stderr):
        return None
    return shorten(last_line(done.stderr)) or f"a process that tried them ended with exit code {done.returncode}"


def is_taken(text: str) -> bool:
    """Whether it is others that a GPU is full of, or at work for: they end, and it computes."""
    return named(text.lower()) == "busy" or "out of memory" in text.lower()


def told(gpus: Sequence[str], reasons: Sequence[str]) -> str:
    """A line on the GPUs that cannot be used; empty where all can."""
    bad = {gpu: why for gpu, why in zip(gpus, reasons, strict=True) if why}
    if not bad:
        return ""
    if len(bad) == len(gpus):
        return f"no GPU is used, jobs run on CPUs: {'; '.join(dict.fromkeys(bad.values()))}"
    why = "; ".join(f"GPU {gpu}: {why}" for gpu, why in bad.items())
    return f"{len(gpus) - len(bad)} of {len(gpus)} GPUs can be used: {why}"
