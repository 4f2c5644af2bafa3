"""Isolation of workers from the user's folder: they import robustq's code and installed packages, no stray files."""

import atexit
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustq.cluster.ray_sessions import make_folder, remove

SECRET = (
    "ROBUSTQ_STORE",
    "PGPASSWORD",
    "ROBUSTQ_UI_TOKEN",
    "ROBUSTQ_SERVE_TOKEN",
)  # a driver's own: no worker opens the store
RELATIVE = ("PYTHONPATH", "RAY_AUTH_TOKEN_PATH")  # what Ray's processes read from the environment when they start


@contextmanager
def isolated() -> Iterator[None]:
    """In an empty folder for the length of a block: to start Ray in, or to reach a cluster.

    Ray puts the folder that it is started from first on its workers' path, and there a `random.py` or `robustq.py` of
    the user's would stand in for Python's own and for ours. The folder stays until the process that made it is done
    with Ray, whose processes work there; this process is back in its own folder when the block ends.
    """
    before, environment = Path.cwd(), {name: os.environ[name] for name in RELATIVE if name in os.environ}
    kept = {name: os.environ.pop(name) for name in SECRET if name in os.environ}
    os.environ.update(absolute(environment))
    os.chdir(empty_folder())
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.update(environment | kept)


def absolute(environment: dict[str, str]) -> dict[str, str]:
    """Those of RELATIVE in there, as another folder has to name the same places."""
    found = {}
    for name in RELATIVE:
        if environment.get(name):  # empty is as good as not set, and no name of the working folder
            places = environment[name].split(os.pathsep) if name == "PYTHONPATH" else [environment[name]]
            found[name] = os.pathsep.join(os.path.abspath(os.path.expanduser(place)) for place in places)
    return found


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a child process that runs jobs with so many threads, as a worker of Ray's would have it."""
    found = {name: value for name, value in os.environ.items() if name not in SECRET}
    passive = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    return passive | found | absolute(found)


def empty_folder() -> str:
    """A folder of this process's own with nothing in it, removed when the process ends."""
    if not EMPTY_FOLDERS:
        EMPTY_FOLDERS.append(make_folder(sockets=False))
        folder = EMPTY_FOLDERS[0][0]
        (folder / "empty").mkdir()
        atexit.register(forget_folder, folder)
    return str(EMPTY_FOLDERS[0][0] / "empty")


def forget_folder(folder: Path) -> None:
    """What a Ray left running there is looked for only where there was one: that takes a look at every process."""
    remove(folder) if "ray" in sys.modules else shutil.rmtree(folder, ignore_errors=True)


EMPTY_FOLDERS: list[tuple[Path, int]] = []  # and the descriptor that holds it


def job_config(ray: Any) -> Any:
    """What keeps the driver's folders off the workers' path: robustq is installed wherever they run, or sent along."""
    return ray.job_config.JobConfig(_py_driver_sys_path=[])


def forget_secrets() -> None:
    """Before a worker loads what is the user's: on a cluster it was started with all that `ray start` was given, and
    the store's password may be among that, since there a driver on the head finds it.
    """
    for name in SECRET:
        os.environ.pop(name, None)


def enter_folder(folder: str) -> None:
    """Work in the user's folder, so that a model finds the files it opens; its modules are not imported from there."""
    if os.path.isdir(folder):  # another machine need not have it
        os.chdir(folder)
