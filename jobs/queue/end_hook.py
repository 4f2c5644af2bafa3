"""A command of the user's that runs when a sweep ends, however it does: it hears how by environment variables."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from robustq.jobs.errors import RobustqError
from robustq.jobs.queue.left_out import count_left_out
from robustq.jobs.queue.status import counts
from robustq.jobs.queue.transitions import UNFINISHED
from robustq.jobs.store.connection import Store
from robustq.jobs.store.sweeps import sweep_name
from robustq.jobs.text.safe_text import address, hide

MOST_SECONDS = 600.0
DONE, FAILED, INTERRUPTED, ENDED = "done", "failed", "interrupted", "error"


@contextmanager
def told_at_the_end(
    command: str | None, store: Store, sweep_id: int | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """Run the command when the block ends. What goes wrong with it is told, and changes nothing of the block's end.

    The command is a line for the shell; what it prints goes to standard error. Its variables: ROBUSTQ_SWEEP (empty for
    all), ROBUSTQ_STATUS (done, failed, interrupted or error), ROBUSTQ_ERROR, ROBUSTQ_DONE, ROBUSTQ_FAILED,
    ROBUSTQ_CANCELLED and ROBUSTQ_LEFT, numbers of jobs but those that a budget left out, and ROBUSTQ_STORE.
    """
    if command is None:
        yield
        return
    status, why = None, ""
    try:
        yield
    except BaseException as error:
        status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else ENDED
        why = hide(" ".join(str(error).split()))
        raise
    finally:
        try:
            variables = told(store, sweep_id, status, why)
        except RobustqError as error:  # the store is away, which is why the block ended
            unknown = dict.fromkeys(("SWEEP", "DONE", "FAILED", "CANCELLED", "LEFT"), "")
            known = {"STATUS": status or ENDED, "ERROR": why or str(error), "STORE": address(store.url)}
            variables = {f"ROBUSTQ_{name}": value for name, value in (unknown | known).items()}
        run(command, variables, tell)


def told(store: Store, sweep_id: int | None, status: str | None, why: str) -> dict[str, str]:
    """The variables. status: None where the block ended by itself."""
    with store.begin() as db:
        found = counts(db, sweep_id)
        found["cancelled"] -= count_left_out(db, sweep_id)  # which is no failure, nor did anybody cancel them
        name = "" if sweep_id is None else sweep_name(db, sweep_id)
    ended = FAILED if found["failed"] or found["cancelled"] else DONE
    numbers = {name: found[name] for name in ("done", "failed", "cancelled")}
    numbers["left"] = sum(found[state] for state in UNFINISHED)
    return {
        "ROBUSTQ_SWEEP": name,
        "ROBUSTQ_STATUS": status or ended,
        "ROBUSTQ_ERROR": why,
        "ROBUSTQ_STORE": address(store.url),
        **{f"ROBUSTQ_{name.upper()}": str(n) for name, n in numbers.items()},
    }


def run(command: str, variables: dict[str, str], tell: Callable[[str], None]) -> None:
    # Standard output is the results'; 2 is the process's own, also where Python's sys.stderr is something else.
    how = {"env": {**os.environ, **variables}, "stdin": subprocess.DEVNULL, "stdout": 2}
    try:
        # A session of its own: what the shell has started ends with it.
        with subprocess.Popen(command, shell=True, start_new_session=True, **how) as process:
            try:
                code = process.wait(MOST_SECONDS)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        problem = f"exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"no end after {MOST_SECONDS / 60:g} minutes: it was killed with what it started"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        tell(f"--on-end {hide(command)}: {problem}; the results are stored all the same")
