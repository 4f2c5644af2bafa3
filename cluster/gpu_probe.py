"""A trial of the GPUs that Ray counts: torch multiplies on each of them, in a process as workers are."""

import subprocess
import sys
from functools import lru_cache

from robustq.cluster.worker_ends import last_line, shorten

MOST_SECONDS = 180.0  # to load torch from a slow disk and to begin on each GPU
CODE = """
import torch
n = torch.cuda.device_count()
for i in range(n):
    x = torch.ones(16, 16, device=f"cuda:{i}")
    found = (x @ x).sum().item()
    if found != 16**3:
        raise RuntimeError(f"GPU {i} multiplies wrongly: {found} instead of {16**3}")
if n == 0:
    torch.ones(1).cuda()  # says why
    raise RuntimeError("torch sees no GPU")
"""


@lru_cache
def reason_against(gpus: int) -> str:
    """Why torch cannot use the machine's GPUs, in a line; empty where it can. gpus: how many there should be.

    Asked once a process. A build of torch without CUDA, too old a driver, a card that torch has no kernels for.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"a product of two matrices took them more than {MOST_SECONDS:g} seconds"
    except OSError as error:
        return f"Python cannot be started to try them: {error}"
    if done.returncode == 0:
        return ""
    return shorten(last_line(done.stderr)) or f"a process that tried them ended with exit code {done.returncode}"
