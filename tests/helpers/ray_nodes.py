"""Nodes of a Ray cluster on this machine, for tests: started as docs/clusters.md says, ended with all they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BIN = Path(sys.executable).parent


def start_node(words: list[str], env: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    """One node in the foreground, as a group of its own."""
    with (folder / "ray.log").open("ab") as log:
        command = [str(BIN / "ray"), "start", "--block", *words]
        return subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def end_node(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(ready: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "not ready in time"
        time.sleep(1)
