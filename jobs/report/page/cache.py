"""A cache of what the page reads and draws, so that a page that is shown again need not do it again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from robustq.jobs.queue.status import IsGone
from robustq.jobs.report.page.html_table import Line
from robustq.jobs.report.pictures.attribution_pictures import MapGrid
from robustq.jobs.report.pictures.image_outcomes import Outcome, outcome_of, query_totals, read_outcomes
from robustq.jobs.report.pictures.thumbnails import Data, Drawn, find_data
from robustq.jobs.results.compare import seen
from robustq.jobs.specs import DataRef
from robustq.jobs.statistics.model_pairs import Seen, Versus, versus
from robustq.jobs.store.bulk_insert import chunks
from robustq.jobs.store.schema import job, result
from robustq.jobs.text.tables import Row

LOOK_AGAIN = 60.0  # seconds until a data set that is not there is looked for again, which may be a download


@dataclass(frozen=True)
class Details:
    """What a job was asked for, and what its result tells besides its row."""

    spec: dict[str, Any]
    extra: dict[str, Any]


@dataclass(frozen=True)
class QueryCounts:
    """Of each image whether it fell, and after how many queries, shape (N,)."""

    success: np.ndarray
    queries: np.ndarray


def nobody_is(pid: int, process: str | None) -> bool:
    """Of no driver it is known that it died: where whoever asks cannot look at processes."""
    return False


class PageCache:
    """Readings of one store by job or by content, which do not change; outcomes that it lost are looked for again.

    drawn: pictures by job and names of classes.  maps: of explanations by job, title and names of classes.
    lines: of the table of all results, by sweep, job, verdict with its reasons and hash of the weights: a later audit
    may change a verdict.  is_gone: tells drivers that died from those at work, see jobs/queue/status.py.
    """

    def __init__(self, is_gone: IsGone = nobody_is) -> None:
        self.is_gone = is_gone
        self.drawn: dict[tuple[int, tuple[str, ...]], Drawn] = {}
        self.maps: dict[tuple[int, str, tuple[str, ...]], MapGrid] = {}
        self.lines: dict[tuple[int, int, str | None, str], Line] = {}
        self.studies: dict[int, str] = {}
        self._details: dict[int, Details] = {}
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self._places: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        self._versus: dict[tuple[tuple[int, ...], tuple[int, ...], str], Versus] = {}
        self._seen: dict[tuple[int, str], Seen] = {}
        self._query_totals: dict[int, int | None] = {}
        self._query_counts: dict[int, QueryCounts] = {}
        self._data: dict[DataRef, tuple[Data, float]] = {}  # with the time at which it was looked for

    def details(self, db: Connection, ids: Sequence[int]) -> dict[int, Details]:
        """Of evaluations that are done."""
        for some in chunks([id_ for id_ in ids if id_ not in self._details]):
            chosen = select(job.c.id, job.c.spec, result.c.extra).join(result, result.c.job_id == job.c.id)
            found = db.execute(chosen.where(job.c.id.in_(some)))
            self._details |= {id_: Details(spec, extra or {}) for id_, spec, extra in found}
        return {id_: self._details[id_] for id_ in ids}

    def outcome(self, db: Connection, job_id: int, classes: int) -> Outcome | None:
        """The outcome of an evaluation of a data set with so many classes; None where the store lost it."""
        key = (job_id, classes)
        if key not in self._outcomes and (columns := read_outcomes(db, job_id)) is not None:
            self._outcomes[key] = outcome_of(columns, classes)
        return self._outcomes.get(key)

    def versus(self, db: Connection, first: Sequence[Row], second: Sequence[Row], column: str) -> Versus:
        """Two models compared, each by its evaluations, a seed each; column: see `compare.seen`."""
        ids = [tuple(row["job_id"] for row in rows) for rows in (first, second)]
        key = (ids[0], ids[1], column)
        if key not in self._versus:
            one, other = ([self.seen(db, row, column) for row in rows] for rows in (first, second))
            found = versus(one, other)
            if not all(len(seen.index) for seen in (*one, *other)):
                return found  # something is lost, and looked for again
            self._versus[key] = found
        return self._versus[key]

    def seen(self, db: Connection, row: Row, column: str) -> Seen:
        """What an evaluation saw of each image, see `compare.seen`."""
        key = (row["job_id"], column)
        if key not in self._seen:
            found = seen(db, row, column)
            if not len(found.index):
                return found
            places = self._places.setdefault(found.index.tobytes() + found.label.tobytes(), (found.index, found.label))
            self._seen[key] = Seen(*places, found.right)  # most evaluations are of the same images
        return self._seen[key]

    def query_totals(self, db: Connection, job_ids: Sequence[int]) -> dict[int, int | None]:
        """By evaluation the queries of all images; None where none were counted, or the store lost them."""
        self._query_totals |= query_totals(db, [id_ for id_ in job_ids if id_ not in self._query_totals])
        return {id_: self._query_totals[id_] for id_ in job_ids}

    def query_counts(self, db: Connection, job_id: int) -> QueryCounts | None:
        """None where the store lost them."""
        if job_id not in self._query_counts and (columns := read_outcomes(db, job_id)) is not None:
            self._query_counts[job_id] = QueryCounts(columns["success"], columns["queries"])
        return self._query_counts.get(job_id)

    def data(self, ref: dict[str, Any] | None) -> Data:
        """The data set that a sweep names, where this machine has it with the same content."""
        if ref is None:
            return Data(None, "no evaluation is done yet", ())
        spec = DataRef.model_validate(ref)
        found, looked = self._data.get(spec, (None, -LOOK_AGAIN))
        if found is None or (found.dataset is None and time.monotonic() - looked > LOOK_AGAIN):
            found = find_data(spec)
            self._data[spec] = found, time.monotonic()
        return found
