"""The merge of one store into another: what two clusters did, each job once, the results of both.

All rows are written in one transaction, and files before its end: whoever is killed in between leaves the store as it
was, and files that the next prune finds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select, update

from robustq.jobs.errors import ArtifactError, StoreError
from robustq.jobs.queue.dependencies import end_dependents, unblock
from robustq.jobs.queue.transitions import UNFINISHED
from robustq.jobs.store import artifacts
from robustq.jobs.store.bulk_insert import add_dependencies, add_jobs, chunks, insert_new, known_jobs
from robustq.jobs.store.connection import Store
from robustq.jobs.store.database.sqlite_files import identity
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema import artifact, job, job_artifact, job_dep, sweep, sweep_job
from robustq.jobs.text.safe_text import address
from robustq.jobs.upkeep.copied_rows import copy_attempts, copy_events, copy_results
from robustq.jobs.upkeep.prune import delete_jobs, pairs, refuse_at_work
from robustq.jobs.upkeep.result_difference import Difference, difference, is_same, results_of

LEASE = {"lease_owner": None, "lease_expires_at": None, "cancel_requested": False}


@dataclass
class Merged:
    """What a merge did. new: jobs that the store did not know, of which `done` had ended there.  taken: results of jobs
    that it knew and had not finished.  same: jobs that both had finished alike.  lost: artifacts that are not where
    they should be.  copied: of the others those that were copied, `bytes` together.
    """

    sweeps: int = 0
    new: int = 0
    done: int = 0
    taken: int = 0
    same: int = 0
    differing: list[Difference] = field(default_factory=list)
    copied: int = 0
    bytes: int = 0
    lost: list[str] = field(default_factory=list)


class Undone(Exception):
    """The end of a merge that was only tried."""


def merge(target: Store, source: Store, *, places: Sequence[str] = (), dry_run: bool = False) -> Merged:
    """Bring the sweeps, jobs, results and artifacts of `source` into `target`; of a key that both have finished, the
    target's result stays.

    places: where artifacts of the source may lie, besides where it says.  dry_run: change nothing.
    Raises StoreError where both are one store, or a driver works on the target.
    """
    refuse_itself(target, source)
    step = Step(target, source, [*places, source.artifacts, *beside(source)], dry_run)
    try:
        with source.begin() as there, target.begin() as here:
            refuse_at_work(here, target)
            step.run(there, here)
            if dry_run:
                raise Undone
    except Undone:
        pass
    return step.found


def refuse_itself(target: Store, source: Store) -> None:
    paths = [parse_url(store.url)[1] for store in (target, source)]
    files = [None if path is None else identity(path) for path in paths]
    if target.url == source.url or (files[0] is not None and files[0] == files[1]):
        raise StoreError(f"expected another store to take in, got {address(source.url)}, which is this one")


class Step:
    """One merge at work. number: of a job in the target, by that in the source."""

    def __init__(self, target: Store, source: Store, places: Sequence[str], dry_run: bool):
        self.target, self.source, self.places, self.dry_run = target, source, places, dry_run
        self.found = Merged()
        self.number: dict[int, int] = {}

    def run(self, there: Connection, here: Connection) -> None:
        rows = there.execute(select(job.c.id, job.c.key, job.c.state, job.c.kind).order_by(job.c.id)).all()
        known = known_jobs(here, [row.key for row in rows])
        both = [row for row in rows if row.key in known]
        new = self.without_strange_shards(there, [row for row in rows if row.key not in known])
        self.number |= {row.id: known[row.key][0] for row in both}
        self.add_jobs(there, here, [row.id for row in new])
        self.found.new, self.found.done = len(new), sum(row.state == "done" for row in new)
        done = [row for row in both if row.state == "done"]
        self.compare(there, here, [row.id for row in done if known[row.key][1] == "done"])
        taken = [row.id for row in done if known[row.key][1] != "done"]
        self.take_over(there, here, taken)
        self.found.taken = len(taken)
        results = [row.id for row in new if row.state == "done"] + taken
        copy_results(there, here, results, self.number)
        self.copy_files(there, results)
        copy_attempts(there, here, [row.id for row in new] + taken, self.number)
        copy_events(there, here, [row.id for row in new], self.number)
        self.add_sweeps(there, here)
        self.settle(here, [self.number[row.id] for row in new], [self.number[id_] for id_ in taken])

    def without_strange_shards(self, there: Connection, rows: Sequence[Any]) -> list[Any]:
        """The jobs without shards of evaluations that the target knows: it has them whole, or splits them itself."""
        ids = {row.id for row in rows}
        shard = job.alias("shard")
        of_shards = select(job_dep.c.needs_id, job_dep.c.job_id).join(shard, shard.c.id == job_dep.c.needs_id)
        parents: dict[int, set[int]] = {}
        for part, parent in there.execute(of_shards.where(shard.c.kind == "shard")):
            parents.setdefault(part, set()).add(parent)
        return [row for row in rows if row.kind != "shard" or parents.get(row.id, set()) & ids]

    def add_jobs(self, there: Connection, here: Connection, ids: Sequence[int]) -> None:
        """Jobs that the target does not know, with what they need. What was to be done waits until `settle`."""
        keys: dict[str, int] = {}
        for some in chunks(ids):
            rows = [dict(row) for row in there.execute(select(job).where(job.c.id.in_(some))).mappings()]
            keys |= {row["key"]: row.pop("id") for row in rows}
            for row in rows:
                row |= LEASE | ({"state": "blocked"} if row["state"] in UNFINISHED else {})
            self.number |= {keys[key]: number for key, (number, _) in add_jobs(here, rows).items()}
        for some in chunks(ids):
            needs = there.execute(select(job_dep.c.job_id, job_dep.c.needs_id).where(job_dep.c.job_id.in_(some)))
            add_dependencies(here, [(self.number[one], self.number[needed]) for one, needed in needs])

    def compare(self, there: Connection, here: Connection, ids: Sequence[int]) -> None:
        """Results that both have: alike, or named with where they come from."""
        for some in chunks(ids):
            others, mine = results_of(there, some), results_of(here, [self.number[id_] for id_ in some])
            for id_ in some:
                other, own = others.get(id_), mine.get(self.number[id_])
                if other is None or own is None or is_same(here, own, there, other):
                    self.found.same += 1
                else:
                    self.found.differing.append(difference(here, own, other, self.target, self.source))

    def take_over(self, there: Connection, here: Connection, ids: Sequence[int]) -> None:
        """Jobs that the target knows are done: it keeps no shards of them that it has yet to do."""
        shard = job.alias("shard")
        for id_ in ids:
            number = self.number[id_]
            parts = select(shard.c.id).join(job_dep, job_dep.c.needs_id == shard.c.id)
            parts = parts.where((job_dep.c.job_id == number) & (shard.c.kind == "shard"))
            delete_jobs(here, here.execute(parts).scalars().all())
            ended = select(job.c.started_at, job.c.finished_at).where(job.c.id == id_)
            values = dict(there.execute(ended).mappings().one()) | LEASE
            values |= {"state": "done", "parts": 0, "error_class": None, "error_message": None}
            here.execute(update(job).where(job.c.id == number).values(**values))

    def copy_files(self, there: Connection, ids: Sequence[int]) -> None:
        """The artifacts of these jobs, each compared with its hash."""
        wanted: dict[str, int] = {}
        for some in chunks(ids):
            rows = select(artifact.c.sha256, artifact.c.bytes).join(
                job_artifact, job_artifact.c.sha256 == artifact.c.sha256
            )
            wanted |= pairs(there, rows.where(job_artifact.c.job_id.in_(some)))
        for sha256, size in sorted(wanted.items()):
            if artifacts.reason_of(self.target.artifacts, sha256) is None:
                continue
            data = self.file(sha256)
            if data is None:
                self.found.lost.append(sha256)
                continue
            self.found.copied, self.found.bytes = self.found.copied + 1, self.found.bytes + size
            if not self.dry_run:
                artifacts.put(self.target.artifacts, "", data)

    def file(self, sha256: str) -> bytes | None:
        """An artifact of the source; None where no place has it as it was."""
        for place in self.places:
            try:
                return artifacts.get(place, sha256)
            except ArtifactError:
                continue
        return None

    def add_sweeps(self, there: Connection, here: Connection) -> None:
        """Sweeps with their jobs; one that both have is one, with the jobs of both."""
        rows = [dict(row) for row in there.execute(select(sweep).order_by(sweep.c.id)).mappings()]
        known = pairs(here, select(sweep.c.identity, sweep.c.id))
        for row in rows:
            number = row.pop("id")
            if (mine := known.get(row["identity"])) is None:
                mine = here.execute(sa.insert(sweep).values(**row).returning(sweep.c.id)).scalar_one()
                self.found.sweeps += 1
            members = there.execute(select(sweep_job.c.job_id, sweep_job.c.model).where(sweep_job.c.sweep_id == number))
            insert_new(
                here,
                sweep_job,
                [
                    {"sweep_id": mine, "job_id": self.number[job_id], "model": model}
                    for job_id, model in members
                    if job_id in self.number
                ],
            )

    def settle(self, here: Connection, new: Sequence[int], taken: Sequence[int]) -> None:
        """New jobs that are to be done are queued, wait, or end with what they need, as the target has it."""
        needed = job.alias("needed")
        for some in chunks(new):
            ended = select(needed.c.id, needed.c.state).join(job_dep, job_dep.c.needs_id == needed.c.id)
            ended = ended.where(job_dep.c.job_id.in_(some) & needed.c.state.in_(("failed", "cancelled"))).distinct()
            for number, state in here.execute(ended).all():
                end_dependents(here, number, state, f"job {number} that it needs {words(state)}")
            unblock(here, some)
        for some in chunks(taken):
            unblock(here, select(job_dep.c.job_id).where(job_dep.c.needs_id.in_(some)))


def words(state: str) -> str:
    return "failed" if state == "failed" else "was cancelled"


def beside(store: Store) -> list[str]:
    """Where artifacts of an SQLite store lie, if not where ROBUSTQ_ARTIFACTS says, which may be of the other's."""
    path = parse_url(store.url)[1]
    return [] if path is None else [str(path.parent / "artifacts")]
