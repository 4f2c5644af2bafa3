"""What an error says of the GPU, and what a worker does after it.

No GPU is at work here: errors are raised in CUDA's words.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustlib.gpu_failures import gpu_failure
from robustq.cluster import worker
from robustq.cluster.bad_gpus import MOST, BadGpus
from robustq.cluster.messages import Failed, Finished, Frame, GpuMemory, Refused, Started, WorkerSettings
from robustq.cluster.worker import failure, run_bundle
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.running.context import Result
from robustq.jobs.specs import AttackSpec, EvalSpec, ModelSpec
from tests.helpers.gpu_errors import ASSERT, BUSY, ECC, FIRST, ILLEGAL, ON_GPU, SECOND, a_job
from tests.helpers.small_store import DATA
from tests.helpers.torch_errors import AcceleratorError


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        (ASSERT, "asserted"),
        (ILLEGAL, "lost"),
        ("CUDA error: unspecified launch failure", "lost"),
        ("CUDA error: misaligned address", "lost"),
        (ECC, "unfit"),
        (BUSY, "busy"),
        ("CUDA error: no kernel image is available for execution on the device", "unfit"),
        ("CUDA error: unknown error", "unfit"),
        ("CUDA error: invalid configuration argument", None),  # a launch that the job asked for
        ("CUDA error: operation not permitted when stream is capturing", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_an_error_says_of_the_gpu(text: str, gpu: str | None, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = failure(a_job(1), AcceleratorError(text), ON_GPU)
    assert (found.gpu, found.out_of_memory) == (gpu, False)
    try:
        raise ValueError("the model fails on float32 images") from AcceleratorError(text)
    except ValueError as error:
        assert failure(a_job(1), error, ON_GPU).gpu == gpu
    assert failure(a_job(1), AcceleratorError(text), WorkerSettings("cpu", 1, "", "")).gpu is None


def test_a_lost_context_is_known_by_a_look(monkeypatch):
    def lost() -> None:
        raise AcceleratorError(ILLEGAL)

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert failure(a_job(1), ValueError("the model gives NaN"), ON_GPU).gpu == "lost"


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@pytest.mark.parametrize(("works", "gpu"), [(True, "unbuilt"), (False, "unfit")])
def test_an_extension_for_other_gpus_is_told_from_a_torch_for_others(works: bool, gpu: str, monkeypatch):
    monkeypatch.setattr(worker, "multiplies", lambda: works)
    assert failure(a_job(1), AcceleratorError(NO_KERNEL), ON_GPU).gpu == gpu


def test_a_torch_that_cannot_use_the_gpu_is_evidence_against_it(monkeypatch):
    """Of one model, as in a study of 800 jobs: the GPU of that node is given up, the jobs go elsewhere."""

    def not_compiled() -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "init", not_compiled)
    monkeypatch.setattr(torch.cuda, "synchronize", not_compiled)
    gpus = BadGpus()
    for n in range(1, MOST + 1):
        started, failed = run_bundle([a_job(n), a_job(n + 10)], ON_GPU)
        assert isinstance(started, Started) and isinstance(failed, Failed) and failed.gpu == "unfit"
        assert gpus.failed(FIRST, a_job(n), failed) == (n == MOST)


def test_a_driver_that_is_missing_is_named():
    """A real look: torch finds none here, or was built without CUDA. What comes after would complain of itself."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    _, failed = run_bundle([a_job(1)], ON_GPU)
    assert isinstance(failed, Failed) and failed.gpu == "unfit"
    assert "Found no NVIDIA driver" in failed.message or "not compiled with CUDA" in failed.message


@pytest.mark.parametrize(
    ("text", "gpu"),
    [
        ("CUDA error: initialization error", "unfit"),
        ("weight initialization error", None),
        ("ecc error in my decoder", None),
    ],
)
def test_words_that_a_model_may_use_are_cudas_only_after_its_name(text: str, gpu: str | None):
    assert gpu_failure(RuntimeError(text)) == gpu


@pytest.mark.parametrize(("others", "gpu"), [(0, None), (60, "crowded")])
def test_memory_that_others_hold_is_told_apart(others: int, gpu: str | None, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((80 - 15 - others) * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 15 * 2**30)
    error = torch.OutOfMemoryError("CUDA out of memory")
    found = failure(a_job(1), error, ON_GPU)
    assert (found.out_of_memory, found.gpu) == (True, gpu)
    shared = WorkerSettings("cuda", 1, "", "", gpu_share=0.5)  # whose neighbours are meant to be there
    assert failure(a_job(1), error, shared).gpu is None


@pytest.fixture
def jobs_that(monkeypatch) -> dict[int, Exception]:
    """Jobs by number that raise; the others finish."""
    raises: dict[int, Exception] = {}

    def run_one(claimed: Claimed, settings: WorkerSettings) -> Iterator[Frame]:
        if claimed.id in raises:
            raise raises[claimed.id]
        yield Finished(claimed, {}, None, ())

    monkeypatch.setattr(worker, "run_one", run_one)
    monkeypatch.setattr(worker, "prepare", lambda settings: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return raises


def test_after_a_lost_context_the_bundle_ends(jobs_that):
    jobs_that[1] = AcceleratorError(ASSERT)
    frames = list(run_bundle([a_job(1), a_job(2), a_job(3)], ON_GPU))
    assert [type(frame) for frame in frames] == [Started, Failed]
    jobs_that[1] = ValueError("its own")
    kinds = [type(frame) for frame in run_bundle([a_job(1), a_job(2)], ON_GPU)]
    assert kinds == [Started, Failed, Started, Finished]


def test_a_bundle_on_a_gpu_that_is_given_up_runs_nothing(monkeypatch, jobs_that):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(worker.platform, "node", lambda: "here")
    elsewhere = WorkerSettings("cuda", 1, "", "", bad_gpus=frozenset({FIRST}))
    assert [type(frame) for frame in run_bundle([a_job(1)], elsewhere)] == [Started, Finished]
    there = WorkerSettings("cuda", 1, "", "", bad_gpus=frozenset({SECOND}))
    frames = run_bundle([a_job(1)], there)
    found = next(frames)
    assert isinstance(found, Refused) and found.place.gpu == SECOND
    # It would now wait for its end: Ray gives the GPU to nobody meanwhile.


def test_a_row_tells_the_memory_of_its_own_job(monkeypatch):
    """The peak of one process: 30 GB of the first job were told of every later one."""
    peak = [0]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: peak[0])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=80))
    monkeypatch.setattr(worker, "prepare", lambda settings: True)

    def run(spec: Any, context: Any) -> Iterator[Any]:
        peak[0] = max(peak[0], spec.examples)
        yield Result({"n": 0})

    monkeypatch.setattr("robustq.jobs.running.run.run", run)
    spec = EvalSpec(model=ModelSpec(arch="lenet5"), data=DATA, attack=AttackSpec(name="clean"))
    jobs = [
        Claimed(n, "k", 1, "eval", spec.model_copy(update={"examples": n}).model_dump(mode="json"), {}) for n in (30, 2)
    ]
    frames = [frame for frame in run_bundle(jobs, ON_GPU) if isinstance(frame, Finished)]
    assert [frame.gpu_memory for frame in frames] == [GpuMemory(30, 80), GpuMemory(2, 80)]
