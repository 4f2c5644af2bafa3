"""The export of runs to a tracker, whose package is loaded only then."""

from collections.abc import Callable, Sequence
from importlib import import_module

from sqlalchemy import Connection

from robustlib.number_text import counted
from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import Filters
from robustq.jobs.trackers.runs import Run, runs_of

Tell = Callable[[str], None]


def export_runs(db: Connection, tracker: str, place: str, filters: Filters, tell: Tell) -> int:
    """Bring the runs to a tracker; returns how many. place: see the tracker's module.

    Raises SpecError where its package is not installed, or there is no result.
    """
    runs = runs_of(db, filters)
    try:
        write = import_module(f"robustq.jobs.trackers.to_{tracker}").write
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != tracker:
            raise
        raise SpecError(f"--to {tracker} needs the package {tracker}: pip install 'robustq[{tracker}]'") from error
    written: Sequence[Run] = write(runs, place)
    if there := len(runs) - len(written):
        tell(f"{counted(there, 'run is', 'runs are')} there already, with the same results")
    return len(written)
