"""A study cut to a budget of time: its jobs in the order of their value, as far as they fit."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustlib.settings import AUDIT, CERTIFY, EXPLAIN
from robustq.jobs.specs import EvalSpec
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.wall_time import FindSlots, wall_seconds
from robustq.jobs.text.durations import duration

# Attacks from the strongest on: the one that every model gets first is the strongest that is cheap.
STRENGTH = (
    "autoattack", "apgd-t", "apgd-ce", "apgd-dlr", "pgd", "fab-t", "fab", "square", "mifgsm", "cw", "fmn", "deepfool",
    "spsa", "nes", "hopskipjump", "fgsm", "transfer", "noise",
)  # fmt: skip
CHEAP = 0.5  # of what is left of the budget after the clean evaluations: so much an attack on every model may take
NOT_ATTACKS = frozenset({"clean", "corruption", AUDIT, CERTIFY, EXPLAIN})


@dataclass(frozen=True)
class Budget:
    """seconds: of wall clock, on the slots that `find_slots` gives.  text: as it was typed."""

    seconds: float
    text: str
    find_slots: FindSlots


@dataclass(frozen=True)
class Cut:
    """What fits into a budget, in the order of its value, each job after those that it needs; and what does not.

    wall_seconds: of what fits.  left_seconds: of work of what does not.  seconds: of each job by its key, as far as
    they were estimated.
    """

    chosen: list[Planned]
    left_out: list[Planned]
    wall_seconds: float
    left_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)


class Purse:
    """What has been chosen so far. seconds: of each job, infinite where they are not known."""

    def __init__(self, plan: Sequence[Planned], seconds: Mapping[str, float], budget: float, slots: int):
        self.plan = {job.key: job for job in plan}
        self.times, self.budget, self.slots = seconds, budget, slots
        self.chosen: dict[str, Planned] = {}
        self.spent = self.longest = 0.0

    def needed(self, jobs: Iterable[Planned], known: Container[str] = ()) -> dict[str, Planned]:
        """The jobs, each after what it needs, but for those that are known."""
        found: dict[str, Planned] = {}
        for job in jobs:
            if job.key not in known and job.key not in found:
                found |= self.needed((self.plan[need] for need in job.needs if need in self.plan), known)
                found[job.key] = job
        return found

    def price(self, jobs: Iterable[Planned]) -> float:
        """Seconds of work that they cost, with what they need and is not chosen yet."""
        return sum(self.times.get(key, 0.0) for key in self.needed(jobs, self.chosen))

    @property
    def left(self) -> float:
        """Seconds of work that the budget still has."""
        return self.budget * self.slots - self.spent

    def take(self, jobs: Sequence[Planned]) -> dict[str, Planned]:
        """Choose these jobs and what they need, if they fit; returns what is chosen now and was not before."""
        more, price = self.needed(jobs, self.chosen), self.price(jobs)
        longest = max(self.longest, sum(self.times.get(key, 0.0) for key in self.needed(jobs)))
        if not price <= self.left + 1e-9:
            return {}
        # No order of jobs is worse than that: only past it they must be played through.
        surely = (self.spent + price) / self.slots + longest <= self.budget
        if not surely and wall_seconds({**self.chosen, **more}.values(), self.times, self.slots) > self.budget + 1e-9:
            return {}
        self.chosen |= more
        self.spent, self.longest = self.spent + price, longest
        return more


def cut(plan: Sequence[Planned], seconds: Mapping[str, float], budget: float, slots: int) -> Cut:
    """What of a plan fits into so many seconds of wall clock on so many slots.

    Clean evaluations first, then one attack on every model, the strongest cheap one, then the rest, the cheapest
    first. A training is chosen with the first job that needs it, a worst case where all that it rests on is chosen; the
    radii of one search are chosen together. seconds: of each job by its key, 0 of what is done.
    """
    purse = Purse(plan, seconds, budget, slots)
    items = searches(plan)
    clean = [item for item in items if is_clean(item[0])]
    take_cheapest(purse, clean)
    attacks = one_everywhere(purse, [item for item in items if is_attack(item[0])])
    take_cheapest(purse, attacks)
    take_cheapest(purse, items)
    for job in plan:
        if job.spec.kind == "worst" and all(need in purse.chosen for need in job.needs):
            purse.chosen[job.key] = job
    chosen = list(purse.chosen.values())
    left_out = [job for job in plan if job.key not in purse.chosen]
    left = sum(seconds.get(job.key, 0.0) for job in left_out)
    return Cut(chosen, left_out, wall_seconds(chosen, seconds, slots), left, seconds)


def take_cheapest(purse: Purse, items: Sequence[list[Planned]]) -> None:
    """Take what fits, the cheapest first; a training that is paid for makes the others of its model cheaper."""
    prices = [purse.price(item) for item in items]
    users: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        for need in {need for job in item for need in job.needs}:
            users[need].append(i)
    heap, seen = [(price, i) for i, price in enumerate(prices)], set[int]()
    heapq.heapify(heap)
    while heap:
        price, i = heapq.heappop(heap)
        if i in seen or price != prices[i]:
            continue
        seen.add(i)
        for j in {j for key in purse.take(items[i]) for j in users[key]} - seen:
            prices[j] = purse.price(items[j])
            heapq.heappush(heap, (prices[j], j))


def searches(plan: Sequence[Planned]) -> list[list[Planned]]:
    """The evaluations, those together that are one search at several radii."""
    found: dict[Any, list[Planned]] = {}
    for job in plan:
        if isinstance(job.spec, EvalSpec):
            attack = job.spec.attack
            whole = job.spec.model_copy(update={"attack": attack.model_copy(update={"eps": None})})
            found.setdefault(whole.key() if attack.curve else job.key, []).append(job)
    return list(found.values())


def is_clean(job: Planned) -> bool:
    return isinstance(job.spec, EvalSpec) and job.spec.attack.name == "clean"


def is_attack(job: Planned) -> bool:
    """Whether it is an attack that may move images."""
    return isinstance(job.spec, EvalSpec) and job.spec.attack.name not in NOT_ATTACKS and job.spec.attack.eps != 0


def one_everywhere(purse: Purse, items: Sequence[list[Planned]]) -> list[list[Planned]]:
    """The strongest attack that is cheap on all models together, the cheapest where none is; of those alike the one
    that takes longest.
    """
    columns: dict[Any, list[list[Planned]]] = {}
    for item in items:
        spec = item[0].spec
        assert isinstance(spec, EvalSpec)
        attack = spec.attack
        columns.setdefault((attack.name, attack.norm, attack.curve or attack.eps, attack.recipe), []).append(item)
    if not columns:
        return []
    prices = {column: purse.price([job for item in some for job in item]) for column, some in columns.items()}
    cheap = [column for column, price in prices.items() if price <= CHEAP * purse.left]
    if not cheap:
        return columns[min(prices, key=lambda column: prices[column])]
    return columns[min(cheap, key=lambda column: (strength(column[0]), -prices[column]))]


def strength(name: str) -> int:
    """The place among STRENGTH, of what is not there the last."""
    return STRENGTH.index(name) if name in STRENGTH else len(STRENGTH)


def left_words(found: Cut) -> str:
    """How much work is left out, in words; nothing where some of it cannot be told."""
    return f", {duration(found.left_seconds)} of work" if math.isfinite(found.left_seconds) else ""


def known_seconds(plan: Sequence[Planned], estimate: Callable[[Planned], float | None]) -> dict[str, float]:
    """The expected seconds of jobs by key: none of what fails at once for want of a gradient, infinite where they
    cannot be told here, so that it fits into no budget.
    """
    found = {job.key: estimate(job) for job in plan}
    return {key: math.inf if s is None else 0.0 if math.isnan(s) else s for key, s in found.items()}
