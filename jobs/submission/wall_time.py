"""The wall-clock time of jobs on equal slots: each begins as soon as a slot is free and what it needs is done."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from robustq.jobs.submission.plan import Planned


@dataclass(frozen=True)
class Slots:
    """Equal places that jobs run in: how many, and the CPU threads of each."""

    count: int
    threads: int


FindSlots = Callable[[int, int], Slots]  # from the jobs that may run side by side, and the GPUs that there are


def wall_seconds(plan: Iterable[Planned], seconds: Mapping[str, float], slots: int) -> float:
    """Seconds until all of these jobs are done. seconds: of each, by its key; what has none takes none.

    Trainings go first, the others in their order, as the queue has it; what is needed from outside of the plan is
    there already.
    """
    jobs = list(plan)
    place = {job.key: i for i, job in enumerate(jobs)}
    waits = [len({need for need in job.needs if need in place}) for job in jobs]
    dependents: dict[int, list[int]] = defaultdict(list)
    for i, job in enumerate(jobs):
        for need in {need for need in job.needs if need in place}:
            dependents[place[need]].append(i)
    ready = [(jobs[i].spec.kind != "train", i) for i, n in enumerate(waits) if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, i = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds.get(jobs[i].key, 0.0), i))
        now, ended = heapq.heappop(running)
        for i in dependents[ended]:
            waits[i] -= 1
            if waits[i] == 0:
                heapq.heappush(ready, (jobs[i].spec.kind != "train", i))
    return now
