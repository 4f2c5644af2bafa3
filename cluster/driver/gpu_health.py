"""The GPUs of a run, as its driver knows them: what a frame says of one, and which are given up."""

from dataclasses import replace

from robustq.cluster import bad_gpus
from robustq.cluster.driver.state import Bundle, Driver
from robustq.cluster.messages import Failed, Finished, Frame, Gpu
from robustq.jobs.errors import RunError
from robustq.jobs.queue import transitions


def check_gpus(driver: Driver) -> None:
    """Raise RunError where every GPU is given up: jobs that fail there one after the other are better kept."""
    if driver.blocked and not driver.bundles and driver.free_slots < driver.slots.smallest:
        why = "; ".join(f"{bad_gpus.name(gpu)}: {reason}" for gpu, reason in driver.gpus.bad.items())
        raise RunError(f"no GPU is left that jobs do not fail on ({why}); the jobs that are left are still queued")


def judge_gpu(driver: Driver, bundle: Bundle, frame: Frame) -> None:
    """What a frame says of the GPU that it came from."""
    if bundle.place is None or not driver.slots.num_gpus:
        return
    if isinstance(frame, Finished):
        driver.gpus.worked(bundle.place.gpu)
    elif isinstance(frame, Failed) and is_exclusive(bundle, frame):
        if driver.slots.shared:
            driver.slots = replace(driver.slots, shared=False)
            name = bad_gpus.name(bundle.place.gpu)
            driver.tell(f"{name} takes one process at a time (its exclusive mode): each bundle gets a GPU of its own")
    elif isinstance(frame, Failed):
        give_up_gpu(driver, bundle.place.gpu, driver.gpus.failed(bundle.place.gpu, frame.job, frame))


def is_exclusive(bundle: Bundle, frame: Failed) -> bool:
    """Whether a GPU refused a process because it had another of ours."""
    return frame.gpu == "busy" and bundle.settings.gpu_share < 1


def give_up_gpu(driver: Driver, gpu: Gpu, given_up: bool) -> None:
    if given_up:
        told = driver.gpus.told(gpu)
        driver.tell(told)
        driver.write(lambda db: transitions.note(db, transitions.BAD_GPU, driver_id=driver.id, text=told))
