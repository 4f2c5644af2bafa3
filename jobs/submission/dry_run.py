"""The dry run, `--dry-run`: the jobs that a study would queue and what they will take, with nothing queued."""

import math
from pathlib import Path
from typing import Any

from robustlib.inference.throughput import Work
from robustlib.number_text import counted
from robustlib.settings import EXPLAIN
from robustq.jobs.specs import AttackSpec, EvalSpec, TrainSpec
from robustq.jobs.submission import study_sources
from robustq.jobs.submission.budget import Budget, Cut, cut, known_seconds, left_words
from robustq.jobs.submission.cost import job_work, surrogate_work
from robustq.jobs.submission.expand_study import expand
from robustq.jobs.submission.on_this_machine import device_here, make_estimator, one_slot, slots_for
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.wall_time import FindSlots, Slots, wall_seconds
from robustq.jobs.text import tables
from robustq.jobs.text.durations import duration


def dry_run(
    url: str,
    path: Path,
    changes: dict[str, Any],
    *,
    as_json: bool,
    find_slots: FindSlots = one_slot,
    budget: Budget | None = None,
) -> str:
    """The jobs of a study with what they will take, as text or JSON; nothing is queued. Jobs that are done take
    nothing.  budget: says of each job whether it would be queued.
    """
    resolved = study_sources.resolve_file(path, changes)
    plan = expand(resolved)
    slots = slots_for(plan, find_slots if budget is None else budget.find_slots)
    estimates = make_estimator(url, resolved, plan, slots)
    expected = {planned.key: estimates.seconds(planned) for planned in plan}
    seconds = known_seconds(plan, lambda planned: expected[planned.key])
    found = None if budget is None else cut(plan, seconds, budget.seconds, slots.count)
    rows, without_gpu = list[dict[str, Any]](), list[dict[str, Any]]()
    for planned in plan:
        if not isinstance(planned.spec, TrainSpec | EvalSpec):
            continue  # worst cases read what the others stored
        done = planned.key in estimates.done
        besides = surrogate_work(planned.spec, resolved.data)
        work = [] if done else [job_work(planned, resolved), *(passes for _, passes in besides)]
        rows.append(row(planned, sum(work, Work(0)), expected[planned.key], done))
        if found is not None:
            rows[-1]["fits"] = any(one is planned for one in found.chosen)
        if expected[planned.key] is None:
            without_gpu.append(rows[-1])
    total = {name: sum(row[name] or 0 for row in rows) for name in ("forwards", "gradients", "seconds")}
    told = {key: 0.0 if math.isinf(time) else time for key, time in seconds.items()}
    total |= {"slots": slots.count, "wall_seconds": round(wall_seconds(plan, told, slots.count), 1)}
    if as_json:
        whole = {"device": str(device_here()), "jobs": rows, "total": total}
        return tables.json_text(whole | {"not_measured": list(dict.fromkeys(row["model"] for row in without_gpu))})
    measured = [row for row in rows if not any(row is other for other in without_gpu)]
    notes = no_gradient(measured) + not_measured(without_gpu)
    fits = "" if budget is None or found is None else f"\n{budget_sentence(found, budget)}"
    return tables.table(rows) + "\n" + sentence(total, len(rows), slots) + fits + notes


def budget_sentence(found: Cut, budget: Budget) -> str:
    return (
        f"in the budget of {budget.text}: {counted(len(found.chosen), 'job')}, about {duration(found.wall_seconds)}; "
        f"left out: {counted(len(found.left_out), 'job')}{left_words(found)}"
    )


def sentence(total: dict[str, Any], jobs: int, slots: Slots) -> str:
    return (
        f"{counted(jobs, 'job')}: at most {total['forwards']:.3g} passes forward and {total['gradients']:.3g} "
        f"gradients, {duration(total['seconds'])} of work; about {duration(total['wall_seconds'])} on this machine, "
        f"{counted(slots.count, 'job')} at a time"
    )


def no_gradient(rows: list[dict[str, Any]]) -> str:
    """What cannot run, in words."""
    stuck = [row for row in rows if row["seconds"] is None]
    names = ", ".join(dict.fromkeys(row["model"] for row in stuck))
    need = counted(len(stuck), "of them will fail: it needs", "of them will fail: they need")
    return f"\n{need} a gradient, and {names} has none" if stuck else ""


def not_measured(rows: list[dict[str, Any]]) -> str:
    """What asks for a GPU where there is none, in words."""
    names = ", ".join(dict.fromkeys(row["model"] for row in rows))
    why = "the model or its surrogate asks for a GPU, which this machine has not"
    were = ("was", "is") if len(rows) == 1 else ("were", "are")
    told = f"{len(rows)} of them, of {names}, {were[0]} not measured and {were[1]} not in these seconds"
    return f"\n{told}: {why}" if rows else ""


def row(planned: Planned, work: Work, seconds: float | None, done: bool) -> dict[str, Any]:
    spec = planned.spec
    attack = spec.attack if isinstance(spec, EvalSpec) else None
    return {
        "job": spec.kind,
        "model": planned.model,
        "attack": None if attack is None else shown(attack),
        "norm": None if attack is None else attack.norm,
        "eps": None if attack is None else attack.eps,
        "seed": planned.seed,
        "done": done,
        "forwards": work.forwards,
        "gradients": work.gradients,
        # None: it needs a gradient that there is not, or was not measured.
        "seconds": None if seconds is None or math.isnan(seconds) else round(seconds, 1),
    }


def shown(attack: AttackSpec) -> str:
    """The attack, of an explanation with its method: a study has many of that name."""
    return f"{attack.name} {attack.params['method']}" if attack.name == EXPLAIN else attack.name
