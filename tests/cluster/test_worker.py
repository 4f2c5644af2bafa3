"""A bundle in this process, without Ray: frames in order, and a job's error is that job's result."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from robustq.cluster.messages import Failed, Finished, Heartbeat, Progressed, Started, WorkerSettings
from robustq.cluster.process_identity import identity
from robustq.cluster.worker import failure, run_bundle
from robustq.jobs.queue.transitions import Claimed
from robustq.jobs.store import artifacts, example_outcomes
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.expand_study import expand, resolve
from tests.helpers.torch_errors import AcceleratorError


def frames_of(jobs: list[Claimed], settings: WorkerSettings) -> list[Any]:
    return [frame for frame in run_bundle(jobs, settings) if not isinstance(frame, Heartbeat)]


def claimed(planned, number: int, weights=None) -> Claimed:
    return Claimed(number, planned.key, 1, planned.spec.kind, planned.spec.model_dump(mode="json"), weights or {})


@pytest.fixture
def plan():
    study = {
        "name": "s",
        "models": {"a": {"arch": "lenet5", "train": {"epochs": 2, "examples": 256, "validation_examples": 50}}},
        "attacks": [{"name": "pgd", "steps": 3, "eps": 0.1}],
        "examples": 100,
        "images": 3,
    }
    return expand(resolve(Study.model_validate(study), Origin("s", {}, {}), Path(), Path()))


@pytest.fixture
def settings(tmp_path):
    return WorkerSettings("cpu", torch.get_num_threads(), str(tmp_path / "artifacts"), str(tmp_path))


@pytest.mark.slow
def test_train_then_attack(plan, settings):
    train, evaluation = plan
    frames = frames_of([claimed(train, 1)], settings)
    assert [type(frame) for frame in frames] == [Started, Progressed, Progressed, Finished]
    assert frames[0].place.process == identity(os.getpid())
    assert (frames[0].place.pid, frames[1].done, frames[1].total, frames[2].done) == (os.getpid(), 1, 2, 2)
    (weights,) = frames[-1].artifacts
    assert len(frames[-1].row["extra"]["history"]) == 2

    frames = frames_of([claimed(evaluation, 2, {train.key: weights.sha256})], settings)
    assert [type(frame) for frame in frames] == [Started, Progressed, Finished]
    row, table = frames[-1].row, example_outcomes.decode(frames[-1].examples)
    assert row["n"] == table.num_rows == 100
    assert row["robust_accuracy"] == pytest.approx(1 - sum(table.column("success").to_pylist()) / 100)
    assert row["robust_accuracy_low"] < row["robust_accuracy"] < row["robust_accuracy_high"]
    assert row["device"].startswith("cpu: ")
    (images,) = frames[-1].artifacts
    assert safetensors.torch.load(artifacts.get(settings.artifacts, images.sha256))["x_adv"].shape == (3, 1, 8, 8)


@pytest.mark.slow
def test_a_finished_training_that_was_not_recorded_is_not_trained_again(plan, settings):
    """The driver was lost between the last epoch and its result: the kept state gives the same weights."""
    train = claimed(plan[0], 1)
    first = frames_of([train], settings)[-1]
    second = frames_of([train], settings)
    assert [type(frame) for frame in second] == [Started, Finished]
    assert second[-1].artifacts == first.artifacts


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [["", ".before"], [""], [".before"]])
@pytest.mark.parametrize("how", ["flipped", "cut off", "empty", "not a state", "of another model"])
def test_a_training_with_a_damaged_state_comes_out_as_if_undisturbed(damaged, how, plan, settings, tmp_path, capsys):
    train = claimed(plan[0], 1)
    first = frames_of([train], settings)[-1]
    lines = 0
    for ending in damaged:
        path = tmp_path / "artifacts" / "partial" / f"{train.key}{ending}"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # in the weights
        if how in ("not a state", "of another model"):  # whole, as their hashes say
            buffer = io.BytesIO(b"")
            state = {"model": {"weight": torch.zeros(3)}}
            torch.save([] if how == "not a state" else state, buffer)
            content = artifacts.SEAL + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
        path.write_bytes(content[: len(content) // 3] if how == "cut off" else b"" if how == "empty" else content)
        lines += damaged != [".before"]  # which is not looked at while the last is sound
    frames = frames_of([train], settings)
    assert frames[-1].artifacts == first.artifacts  # to the bit
    told = [line for line in capsys.readouterr().err.splitlines() if "unfinished training" in line]
    assert len(told) == lines and all(train.key[:12] in line for line in told)
    assert [frame.note for frame in frames if isinstance(frame, Progressed) and "unfinished" in frame.note] == [
        line.removeprefix("robustq: ") for line in told
    ]


def test_an_error_is_the_jobs_own_and_the_next_job_runs(plan, settings):
    train, evaluation = plan
    broken = claimed(evaluation, 1, {train.key: "0" * 64})
    frames = frames_of([broken, claimed(train, 2)], settings)
    assert isinstance(frames[1], Failed)
    assert (frames[1].error_class, frames[1].disk_full) == ("ArtifactError", False)
    assert "Traceback" in frames[1].traceback
    assert isinstance(frames[-1], Finished)


def test_a_full_disk_is_told_apart(plan, settings, monkeypatch):
    def full(root, path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "write", full)
    frames = frames_of([claimed(plan[0], 1)], settings)
    assert isinstance(frames[-1], Failed)
    assert frames[-1].disk_full


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_ran_out_is_known_in_whatever_words(error: BaseException, ran_out: bool, plan, settings):
    """It is answered by a larger share of the GPU, where there is one, and not booked as the job's own end."""
    assert failure(claimed(plan[0], 1), error, settings).out_of_memory is ran_out
