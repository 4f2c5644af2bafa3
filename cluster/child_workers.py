"""Workers as child processes of the driver, without Ray: for a run whose work fills one slot.

On CPUs a process is used again from bundle to bundle, on a GPU each bundle has one of its own, as with Ray.
"""

import select
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from robustq.cluster.child import Child
from robustq.cluster.messages import Frame, Place, WorkerSettings
from robustq.cluster.ray_sessions import remove_stale
from robustq.cluster.slots import Slots
from robustq.cluster.this_machine import gpu_ids, gpus_of
from robustq.cluster.worker_ends import describe_exit
from robustq.cluster.workers import End, Stream
from robustq.jobs.queue.transitions import Claimed


@dataclass(eq=False)
class Run:
    """A bundle in a child. began_at: what the log held before, in bytes; kills: how many processes the system had
    ended for lack of memory before.
    """

    child: Child
    began_at: int
    kills: int


class ChildWorkers:
    """slots: whose GPU they see, if any.  spare: a child that waits for a bundle."""

    on_cluster = False

    def __init__(self, slots: Slots, spare: Child | None = None):
        self.reused, self.gpus, self.spare = not slots.num_gpus, gpus_seen(slots), spare
        self.runs: list[Run] = []

    def launch(self, claimed: list[Claimed], settings: WorkerSettings, slots: Slots) -> Stream:
        child, self.spare = self.spare, None
        wanted = settings.threads, self.gpus
        if child is not None and ((child.threads, child.gpus) != wanted or not child.is_alive()):
            child.close()
            child = None
        child = child or Child(*wanted)
        run = Run(child, child.log_bytes(), memory_kills())
        child.send((claimed, settings, str(child.log)))
        self.runs.append(run)
        return run

    def collect(
        self, running: Sequence[tuple[Stream, Place | None]], seconds: float
    ) -> tuple[list[tuple[Stream, Frame]], list[tuple[Stream, End]]]:
        frames, ended = list[tuple[Stream, Frame]](), list[tuple[Stream, End]]()
        left = dict[Run, Place | None](running)
        deadline = time.monotonic() + seconds
        while left and (timeout := deadline - time.monotonic()) > 0:
            wait_for([run.child for run in left], timeout)
            for run, place in list(left.items()):
                came, is_done = run.child.receive()
                frames += [(run, frame) for frame in came]
                if is_done:
                    ended.append((run, End()))
                elif not run.child.is_alive():
                    ended.append((run, self.end_of(run, place)))
                else:
                    continue
                del left[run]
                self.forget(run, again=is_done)
        return frames, ended

    def end_of(self, run: Run, place: Place | None) -> End:
        """Why a child has ended. One that was killed before it said a word may have been by anybody."""
        place = place or Place("", "", 0, "", "", str(run.child.log), run.began_at)
        cannot_load = not run.child.is_ready and not run.child.ended_by_signal
        return End(describe_exit(run.child.ended, place, memory_kills() > run.kills, cannot_load), cannot_load)

    def forget(self, run: Run, *, again: bool) -> None:
        """A bundle is over. again: its process may run another one."""
        self.runs.remove(run)
        if again and self.reused and self.spare is None:
            self.spare = run.child
        else:
            run.child.close()

    def stop(self, stream: Stream, place: Place | None) -> None:
        if stream in self.runs:
            self.forget(stream, again=False)

    def lost(self) -> str | None:
        return None

    def slots_now(self, slots: Slots) -> Slots | None:
        return None

    def has_ended(self, stream: Stream) -> bool:
        return not stream.child.is_alive()

    def close(self) -> None:
        for child in [*([] if self.spare is None else [self.spare]), *(run.child for run in self.runs)]:
            child.close()
        self.spare, self.runs = None, []


@contextmanager
def child_workers(slots: Slots, spare: Child | None = None) -> Iterator[ChildWorkers]:
    """For the length of a block. spare: a child that was started before."""
    remove_stale()
    workers = ChildWorkers(slots, spare)
    try:
        yield workers
    finally:
        workers.close()


def gpus_seen(slots: Slots) -> str | None:
    """What CUDA_VISIBLE_DEVICES is for the workers of one slot: its GPU; none on CPUs, where there are some."""
    if slots.num_gpus:
        return (gpus_of(slots) or ["0"])[0]
    return "" if gpu_ids() else None


def wait_for(children: list[Child], seconds: float) -> None:
    """Until one of them has something to say, or takes more of what is said to it."""
    poll = select.poll()
    for child in children:
        for fd, events in child.watched():
            poll.register(fd, events)
    poll.poll(1000 * seconds)


def memory_kills() -> int:
    """How many processes Linux has ended for lack of memory since it began; 0 elsewhere."""
    with suppress(OSError, ValueError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
