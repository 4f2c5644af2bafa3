"""Reasons why a worker ended, in the words that say most: the cause's last line, not Ray's first."""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, update

from robustq.cluster.last_words import last_line, shorten
from robustq.cluster.messages import Place
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store.schema import attempt

FATAL = "Fatal Python error: "
FRAME = re.compile(r'\s+File ".*", line \d+ in ')
LOOK_BYTES, KEEP_BYTES = 2**16, 2**20  # at the end of a log


def describe_end(ray: Any, error: Exception, place: Place | None) -> str:
    """One line on a Ray error. place: where the bundle ran, if it came to that."""
    kind = type(error).__name__
    if is_setup(ray, error):
        return shorten(last_line(str(error)) or kind)
    if isinstance(error, ray.exceptions.WorkerCrashedError) and (words := last_log_line(place)):
        return f"{kind}, and the last that it printed is: {words}"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return shorten(f"{kind}: {first}")


def describe_exit(ended: str | None, place: Place, of_memory: bool, cannot_load: bool) -> str:
    """One line on the end of a child process. ended: `exit` or `signal` and a number, empty where nobody could tell.

    of_memory: the system has meanwhile ended a process for lack of memory.  cannot_load: it had loaded nothing yet.
    """
    how, _, number = (ended or "signal 9").partition(" ")
    words = last_log_line(place)
    if cannot_load:
        return words or f"the worker ended with {how} {number} before it began"
    if how == "signal" and int(number) == signal.SIGKILL and of_memory:
        return "OutOfMemoryError: the system ended the worker for lack of memory"
    kind = f"the worker ended with exit code {number}" if how == "exit" else f"the worker was ended by {named(number)}"
    return f"{kind}, and the last that it printed is: {words}" if words else kind


def named(number: str) -> str:
    try:
        return signal.Signals(int(number)).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def is_setup(ray: Any, error: Exception) -> bool:
    """Whether a worker could not make out its task: what a job raises comes as a frame, so nothing of it has run."""
    return isinstance(error, ray.exceptions.RayTaskError | ray.exceptions.RuntimeEnvSetupError)


def last_log_line(place: Place | None) -> str | None:
    """The last line of a bundle's log that is not Ray's; of a crash of Python itself, what it was and where."""
    if place is None or place.log is None:
        return None
    try:
        with open(place.log, "rb") as file:
            file.seek(max(place.log_begins, file.seek(0, os.SEEK_END) - LOOK_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:  # on another machine, or gone
        return None
    begin = text.rfind(FATAL)
    if begin < 0:
        return shorten(last_line(text)) or None
    fatal, *rest = text[begin:].splitlines()
    where = next((line.strip() for line in rest if FRAME.match(line)), "")
    return shorten(", ".join(filter(None, [fatal.strip(), where])))


def keep_log(db: Connection, place: Place | None, claimed: Claimed, folder: str) -> None:
    """Keep what a job's worker printed: where Ray put it, it goes with the run. Nothing, where it lies elsewhere.

    folder: of the artifacts; the log is then in `logs` there, and the attempt names it.
    """
    if place is None or place.log is None or "://" in folder:
        return
    kept = Path(folder) / "logs" / f"job-{claimed.id}-{claimed.fence}.err"
    with suppress(OSError), open(place.log, "rb") as file:  # on another machine, gone, or no room: told without it
        file.seek(max(place.log_begins, file.seek(0, os.SEEK_END) - KEEP_BYTES))
        text = file.read()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(text)
        here = (attempt.c.job_id == claimed.id) & (attempt.c.fence == claimed.fence)
        db.execute(update(attempt).where(here).values(log=str(kept)))
