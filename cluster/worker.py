"""The remote task: a generator that runs a bundle of jobs in one process on one slot. Ray only carries it."""

import errno
import os
import platform
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Literal

from robustlib.gpu_failures import Failure, gpu_failure
from robustq.cluster.messages import (
    Failed,
    Finished,
    Frame,
    GpuMemory,
    Heartbeat,
    Place,
    Progressed,
    Refused,
    Started,
    WorkerSettings,
)
from robustq.cluster.process_identity import identity
from robustq.cluster.slots import CONTEXT_BYTES
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.text.safe_text import say

FULL = (errno.ENOSPC, errno.EDQUOT)
CROWDED = 1 / 8  # of a GPU's memory that others hold of one that is to be one process's alone
BEAT_SECONDS = 5.0  # between two signs of life of a worker that has nothing else to say


def run_bundle(
    claimed: list[Claimed], settings: WorkerSettings, node_id: str = "", log: str | None = None
) -> Iterator[Frame]:
    """Run the jobs one after the other. Whatever a job raises is that job's result, never the worker's end.

    The jobs have a thread of their own, so that the worker can say that it lives while one of them computes.
    """
    frames: queue.Queue[Frame | None] = queue.Queue()
    place = Place(
        platform.node(),
        node_id,
        os.getpid(),
        identity(os.getpid()),
        os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        log,
        os.path.getsize(log) if log and os.path.exists(log) else 0,
    )
    if settings.device == "cuda" and place.gpu in settings.bad_gpus:
        yield Refused(place)
        threading.Event().wait()  # until the driver ends this process
    start_received = threading.Semaphore(0)
    threading.Thread(target=work, args=(claimed, settings, place, frames.put, start_received), daemon=True).start()
    while True:
        try:
            frame = frames.get(timeout=BEAT_SECONDS)
        except queue.Empty:
            yield Heartbeat()
            continue
        if frame is None:
            return
        yield frame
        if isinstance(frame, Started):
            start_received.release()


def work(
    claimed: list[Claimed],
    settings: WorkerSettings,
    place: Place,
    send: Callable[[Frame | None], None],
    start_received: threading.Semaphore,
) -> None:
    """start_received: released once a start was delivered. No job runs before: it may be the end of this process."""
    ready = False
    for job in claimed:
        send(Started(job, place))
        start_received.acquire()
        try:
            if job.kind == "probe":
                time.sleep(job.spec["seconds"])
                send(Finished(job, probed(settings), None, ()))
                continue
            ready = ready or prepare(settings)
            for frame in run_one(job, settings):
                send(frame)
        except BaseException as error:  # a user's model may even call sys.exit
            failed = failure(job, error, settings)
            send(failed)
            if failed.gpu is not None:
                break  # what came next would fail for this one's reason: this process ends, others take it up
    send(None)


def probed(settings: WorkerSettings) -> dict[str, Any]:
    return {"n": 0, "seconds": 0.0, "device": settings.device, "versions": {"python": platform.python_version()}}


def failure(job: Claimed, error: BaseException, settings: WorkerSettings) -> Failed:
    from robustlib.memory import out_of_memory  # torch: in the worker only

    ran_out = out_of_memory(error)
    trace = "".join(traceback.format_exception(error))
    return Failed(
        job,
        type(error).__name__,
        str(error),
        trace,
        disk_full=isinstance(error, OSError) and error.errno in FULL,
        out_of_memory=ran_out,
        gpu=gpu_state(error, settings, ran_out=ran_out) if settings.device == "cuda" else None,
    )


def gpu_state(error: BaseException, settings: WorkerSettings, *, ran_out: bool) -> Failure | Literal["crowded"] | None:
    """What an error says of the GPU; also one that came of it without saying so, since a lost context stays lost."""
    if (found := gpu_failure(error)) is not None:
        return "unfit" if found == "unbuilt" and not multiplies() else found
    if ran_out:
        return "crowded" if settings.gpu_share >= 1 and is_crowded() else None
    import torch

    try:
        torch.cuda.synchronize()
    except Exception as lost:
        return gpu_failure(lost) or "lost"
    return None


def multiplies() -> bool:
    """Whether torch's own kernels run on the GPU, so that those which do not are of a user's extension."""
    import torch

    try:
        return torch.ones(2, 2, device="cuda").mm(torch.ones(2, 2, device="cuda")).sum().item() == 8
    except Exception:
        return False


def is_crowded() -> bool:
    """Whether other processes hold much of a GPU that is to be this one's alone."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved() > CROWDED * total + CONTEXT_BYTES
    except Exception:  # with the memory the context may be gone
        return False


def run_one(job: Claimed, settings: WorkerSettings) -> Iterator[Frame]:
    import torch

    from robustlib.inference.global_switches import put_back
    from robustq.jobs.running import run  # torch: in the worker only
    from robustq.jobs.specs import EvalSpec, TrainSpec, parse

    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what a row tells is what its own job took
    spec = parse(job.spec)
    assert isinstance(spec, TrainSpec | EvalSpec)  # worst cases are settled by the driver
    context = run.Context(
        device=settings.device, artifacts=settings.artifacts, folder=settings.folder, weights=job.weights
    )
    with put_back() as changed:  # what a model switches while it runs is no other job's
        yield from frames_of(job, run.run(spec, context), settings)
    if changed:
        say(f"robustq: job {job.id} changed {', '.join(changed)} for the whole process: put back", err=True)


def frames_of(job: Claimed, steps: Iterator[Any], settings: WorkerSettings) -> Iterator[Frame]:
    import torch

    from robustq.jobs.running import run

    for frame in steps:
        match frame:
            case run.Progress():
                yield Progressed(job, frame.done, frame.total, frame.note)
            case run.Result():
                if settings.device == "cuda":
                    torch.cuda.synchronize()  # raises where the context was lost and a check took that for its finding
                yield Finished(job, frame.row, frame.examples, frame.artifacts, gpu_memory(settings))


def prepare(settings: WorkerSettings) -> bool:
    """Once a process: threads, the share of the GPU, and where users' modules lie."""
    import torch

    # Set here, since a reused worker keeps the number it had when torch was first loaded.
    torch.set_num_threads(settings.threads)
    if settings.device == "cuda":
        torch.cuda.init()  # says why there is no GPU; what comes next would complain of its arguments
    if settings.device == "cuda" and settings.gpu_share < 1:
        # Shares are Ray's bookkeeping: this keeps one bundle from taking its neighbours' memory.
        torch.cuda.set_per_process_memory_fraction(settings.gpu_share)
    if settings.folder not in sys.path:
        sys.path.append(settings.folder)  # last: a user's file stands in for no installed package
    return True


def gpu_memory(settings: WorkerSettings) -> GpuMemory | None:
    if settings.device != "cuda":
        return None
    import torch

    return GpuMemory(torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory)
