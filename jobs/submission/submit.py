"""The submission of a study to the store: each job once, whoever asks for it and however often."""

import shlex
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, select

from robustlib.number_text import counted
from robustq.jobs.queue.left_out import count_left_out, leave_out, left_out_of, take_in
from robustq.jobs.queue.status import latest_moment
from robustq.jobs.queue.transitions import STEPS
from robustq.jobs.queue.user_actions import mark_wanted, retry, unfinished
from robustq.jobs.specs import EvalSpec, ProbeSpec, TrainSpec, WorstSpec, worst_recipe
from robustq.jobs.store.bulk_insert import add_dependencies, add_jobs, chunks, insert_new, known_jobs
from robustq.jobs.store.connection import Store, open_store, store_exists
from robustq.jobs.store.database.store_url import parse_url
from robustq.jobs.store.schema import job, job_dep, sweep, sweep_job
from robustq.jobs.store.sweeps import latest_sweeps
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.budget import Budget, Cut, left_words
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.plan import Planned, Resolved
from robustq.jobs.submission.resubmit import has_moved, refresh
from robustq.jobs.text.notes import LOGGER


@dataclass(frozen=True)
class Submitted:
    """What submitting did: the sweep, its number of jobs, how many of them are new to the store.

    taken_in: those that a budget had left out before.  left_out: what this one left out, in words.  out: how many of
    its jobs are out of the queue for a budget's sake.
    """

    sweep_id: int
    name: str
    jobs: int
    new: int
    taken_in: int = 0
    left_out: str = ""
    out: int = 0

    @property
    def line(self) -> str:
        """For people: what is queued now and was not before."""
        taken = f", {self.taken_in} that a budget had left out" if self.taken_in else ""
        return f"sweep {self.name}: {counted(self.jobs, 'job')}, {self.new} of them new{taken}{self.left_out}"


def submit(
    url: str,
    study: Study,
    origin: Origin,
    folder: Path,
    *,
    data_folder: Path,
    priority: int = 0,
    budget: Budget | None = None,
    is_new: Callable[[], None] = lambda: None,
) -> tuple[Store, Submitted]:
    """Expand a study and queue what the store does not know yet, all in one transaction; makes a store if need be.

    priority: of its new jobs; those of higher priority go first.  budget: what does not fit is left out of the queue
    until the study is submitted again without one, or with a larger one.  is_new: called where the store does not know
    the study, before torch is loaded to check it.

    A study that the store knows whole is recognised by its hash, without loading torch, unless its files have moved.
    Raises SpecError before anything is written or made.
    """
    resolved = resolve(study, origin, folder, data_folder)
    LOGGER.info("study %s: data set %s, hash %s", study.name, study.dataset, resolved.data.sha256[:12])
    if budget is None and store_exists(url):
        store = open_store(url, create=parse_url(url)[1] is None, write=True)  # a server's database may be empty yet
        with store.begin() as db:
            known = db.execute(select(sweep.c.id).where(sweep.c.identity == resolved.identity)).scalar()
            if known is not None and not has_moved(db, known, resolved):
                LOGGER.info("study %s: the store knows it whole", study.name)
                return store, again(db, known, study.name)
    is_new()
    plan, cut = expand(resolved), None
    LOGGER.info("study %s: %s checked against the kernels", study.name, counted(len(plan), "job"))
    if budget is not None:
        from robustq.jobs.submission.on_this_machine import cut_to_budget  # torch

        cut = cut_to_budget(url, resolved, plan, budget)
        plan = [*cut.chosen, *cut.left_out]
    store = open_store(url, create=True, write=True)
    with store.begin() as db:
        if budget is None or cut is None:
            return store, record(db, resolved, plan, priority)
        return store, record_within(db, resolved, plan, budget, cut, priority)


def record_within(
    db: Connection, resolved: Resolved, plan: list[Planned], budget: Budget, cut: Cut, priority: int = 0
) -> Submitted:
    """As `record`, with what the budget does not hold left out of the queue."""
    unwanted = set(left_out_of(db, ids_of(db, cut.left_out)))
    return keep_to(db, record(db, resolved, plan, priority), budget, cut, unwanted)


def ids_of(db: Connection, plan: list[Planned]) -> list[int]:
    """The numbers of those jobs that the store knows."""
    return [id_ for id_, _ in known_jobs(db, [planned.key for planned in plan]).values()]


def keep_to(db: Connection, done: Submitted, budget: Budget, cut: Cut, unwanted: Set[int] = frozenset()) -> Submitted:
    """Leave what a budget does not hold out of the queue. unwanted: what budgets had left out before."""
    numbers = {key: id_ for key, (id_, _) in known_jobs(db, [planned.key for planned in cut.left_out]).items()}
    ids = list(numbers.values())
    expected = {id_: cut.seconds[key] for key, id_ in numbers.items() if key in cut.seconds}
    leave_out(db, done.sweep_id, ids, budget.text, unwanted, expected)
    n, stay = count_left_out(db, done.sweep_id), sum(unfinished(db, some) for some in chunks(ids))
    named, are, them = (shlex.quote(done.name), *(("is", "it") if n == 1 else ("are", "them")))
    words = (
        f"; {n} of them{left_words(cut)}, {are} left out of the budget of {budget.text}: submitting the study without "
        f"--budget, or robustq retry --sweep {named}, queues {them}"
    )
    fit = counted(stay, "that does not fit", "that do not fit")
    stays = ("stays: it runs", "it") if stay == 1 else ("stay: they run", "them")
    more = f"; {fit} into {budget.text} {stays[0]} already, or another sweep wants {stays[1]} too"
    again_out = unwanted & set(left_out_of(db, ids))  # recording took them in for a moment
    told = (words if n else "") + (more if stay else "")
    return replace(done, taken_in=max(0, done.taken_in - len(again_out)), left_out=told, out=n)


def again(db: Connection, sweep_id: int, name: str) -> Submitted:
    """A sweep that is there already, which now is the latest of its name; what a budget left out of it is queued."""
    if latest_sweeps(db)[name] != sweep_id:
        db.execute(sa.update(sweep).where(sweep.c.id == sweep_id).values(created_at=latest_moment(db)))
    mark_wanted(db, name)
    members = select(sweep_job.c.job_id).where(sweep_job.c.sweep_id == sweep_id)
    taken_in = take_in(db, db.execute(members).scalars().all()) if count_left_out(db, sweep_id) else 0
    return Submitted(sweep_id, name, count_jobs(db, sweep_id), 0, taken_in)


def count_jobs(db: Connection, sweep_id: int) -> int:
    return db.execute(select(sa.func.count()).where(sweep_job.c.sweep_id == sweep_id)).scalar_one()


def record(db: Connection, resolved: Resolved, plan: list[Planned], priority: int = 0) -> Submitted:
    """Insert the sweep, its new jobs and their dependencies; dependencies stand before their dependents in `plan`."""
    now = time.time()
    known = db.execute(select(sweep.c.id).where(sweep.c.identity == resolved.identity)).scalar()
    if known is not None:  # its files have moved, or another process submitted the same study meanwhile
        refresh(db, plan, known_jobs(db, [planned.key for planned in plan]))
        return again(db, known, resolved.study.name)
    spec = resolved.study.model_dump(mode="json")
    named = {"name": resolved.study.name, "identity": resolved.identity}
    values = named | {"spec": spec, "created_at": latest_moment(db)}
    mark_wanted(db, resolved.study.name)
    sweep_id = db.execute(sa.insert(sweep).values(**values).returning(sweep.c.id)).scalar_one()
    before = known_jobs(db, [planned.key for planned in plan])
    refresh(db, plan, before)
    if cancelled := [id_ for id_, state in before.values() if state == "cancelled"]:
        for some in chunks(cancelled):  # what another study gave up, this one wants
            retry(db, some, whole=False)
        before = known_jobs(db, [planned.key for planned in plan])
    by_key = {planned.key: planned for planned in plan}
    states = {key: state for key, (_, state) in before.items()}
    rows = []
    for planned in plan:
        if planned.key not in states:
            states[planned.key] = initial_state([states[key] for key in planned.needs])
            rows.append(columns(planned, states[planned.key], now, priority) | {"recipe": recipe_of(planned, by_key)})
    found = before | add_jobs(db, rows)
    new = [planned for planned in plan if planned.key not in before]
    add_dependencies(db, [(found[planned.key][0], found[key][0]) for planned in new for key in planned.needs])
    members = [{"sweep_id": sweep_id, "job_id": found[planned.key][0], "model": planned.model} for planned in plan]
    insert_new(db, sweep_job, members + shards_of(db, members))
    return Submitted(sweep_id, resolved.study.name, len(plan), len(rows))


def shards_of(db: Connection, members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shards of those members that were split before, as members too: a sweep's driver runs its sweep's jobs."""
    if db.execute(select(job.c.id).where(job.c.parts > 0).limit(1)).first() is None:
        return []
    shard = job.alias("shard")
    parents = {member["job_id"]: member for member in members}
    pairs = db.execute(
        select(job_dep.c.job_id, job_dep.c.needs_id)
        .join(job, job.c.id == job_dep.c.job_id)
        .join(shard, shard.c.id == job_dep.c.needs_id)
        .where((job.c.parts > 0) & (shard.c.kind == "shard"))
    )
    return [parents[parent] | {"job_id": part} for parent, part in pairs if parent in parents]


def initial_state(needed: list[str]) -> str:
    """The state of a new job, from the states of those it needs."""
    for ended in ("failed", "cancelled"):
        if ended in needed:
            return ended
    return "queued" if all(state == "done" for state in needed) else "blocked"


def recipe_of(planned: Planned, plan: Mapping[str, Planned]) -> str | None:
    """What a job's number rests on, in one line."""
    match planned.spec:
        case EvalSpec(attack=attack):
            return attack.recipe
        case WorstSpec(evals=evals):
            return worst_recipe([spec.attack for key in evals if isinstance(spec := plan[key].spec, EvalSpec)])
        case _:
            return None


def columns(planned: Planned, state: str, now: float, priority: int) -> dict[str, Any]:
    """A job's row: the spec whole, and what people ask for as columns of its own."""
    spec = planned.spec
    row: dict[str, Any] = dict.fromkeys(("attack", "norm", "eps", "error_class", "error_message"))
    row |= {
        "key": planned.key,
        "kind": spec.kind,
        "spec": spec.model_dump(mode="json"),
        "dataset": planned.dataset,
        "seed": planned.seed,
        "arch": planned.arch,
        "defence": planned.defence,
        "cost": planned.cost,
        "timeout_seconds": planned.timeout_seconds,
        "subject": planned.subject,
        "priority": STEPS * priority,
        "state": state,
        "created_at": now,
    }
    if state in ("failed", "cancelled"):
        row |= {"error_class": "UpstreamFailed", "error_message": "a job that it needs failed or was cancelled earlier"}
    match spec:
        case TrainSpec():
            share = planned.key  # a training runs by itself, and first: others wait for it
            row["priority"] += 1
        case EvalSpec():
            row |= {
                "attack": spec.attack.name,
                "norm": spec.attack.norm,
                "eps": spec.attack.eps,
            }
            share = f"{spec.data.sha256}/{spec.train or spec.model.key()}"
            if spec.attack.curve:  # the radii of a curve stay together: whoever runs one has run them all
                share += f"/{spec.attack.recipe}/{spec.attack.norm}/{spec.attack.curve}/{spec.examples}/{spec.seed}"
        case WorstSpec():
            row |= {"attack": "worst-case", "norm": spec.norm, "eps": spec.eps}
            share = "worst"
        case ProbeSpec():
            share = "probe"
    return row | {"bundle_key": sha256(share.encode()).hexdigest()}
