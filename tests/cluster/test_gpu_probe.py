"""GPUs that Ray counts and torch cannot use are found before the first job. NVML's count is made up here."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustq.cluster import doctor, gpu_probe, this_machine
from robustq.cluster.gpu_probe import trial
from robustq.cluster.ray_connection import import_ray
from robustq.cluster.slots import usable_cpus
from robustq.cluster.this_machine import gpu_count, gpu_ids, local_slots, visible


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many boards the driver of NVIDIA counts."""
    found = [1]
    monkeypatch.setattr(this_machine, "nvidia_boards", lambda: found[0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    trial.cache_clear()
    yield found
    trial.cache_clear()


@pytest.mark.parametrize(
    ("boards", "visible", "count"),
    [
        (1, None, 1),
        (4, "0,2", 2),
        (4, "", 0),
        (4, "-1", 0),
        (4, "1,-1,2", 1),  # as CUDA reads it
        (1, "MIG-a,MIG-b", 2),
        (0, "MIG-a,MIG-b", 0),
        (1, "GPU-5e2", 1),
        (2, "NoDevFiles", 0),
    ],
)
def test_gpus_are_counted_as_cuda_does(gpus: list[int], monkeypatch, boards: int, visible: str | None, count: int):
    gpus[0] = boards
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


@pytest.mark.slow
@pytest.mark.parametrize("named", [None, "", "NoDevFiles", "1", "0,2", "GPU-5e2,1"])
def test_gpus_are_found_as_ray_finds_them(gpus: list[int], named: str | None, monkeypatch):
    """Of lists that CUDA reads to their ends; and where there is no driver, neither finds a board."""
    import_ray()
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Rays

    gpus[0] = 4
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    seen = Rays.get_current_process_visible_accelerator_ids()
    assert gpu_ids() == (["0", "1", "2", "3"] if seen is None else seen)
    monkeypatch.undo()
    assert this_machine.nvidia_boards() == Rays.get_current_node_num_accelerators()


@pytest.mark.slow
def test_a_run_goes_to_the_cpus_where_torch_cannot_use_the_gpu(gpus: list[int]):
    """The probe is a real one: torch finds no driver here."""
    told: list[str] = []
    slots = local_slots(1, None, told.append)
    assert (slots.device, slots.num_gpus, slots.num_cpus) == ("cpu", 0, usable_cpus())
    assert len(told) == 1 and told[0].startswith("no GPU is used, jobs run on CPUs: ")
    assert "RuntimeError: " in told[0] or "AssertionError: " in told[0]
    found = doctor.check("GPUs", doctor.try_gpus)
    assert found["ok"] == "no" and "1 are there, and none can be used" in found["found"]


def test_gpus_that_multiply_are_used(gpus: list[int], monkeypatch):
    runs: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        runs.append(command)
        return subprocess.CompletedProcess(command, 0, "2\n", "")

    monkeypatch.setattr(gpu_probe.subprocess, "run", run)
    gpus[0], told = 2, list[str]()
    slots = local_slots(1, None, told.append)
    assert (slots.device, slots.count, told) == ("cuda", 2, [])
    assert doctor.try_gpus() == "2 of 2 multiply in a process of their own"
    assert len(runs) == 1  # once a process
    compile(gpu_probe.CODE, "probe", "exec")


def test_a_probe_that_never_ends_is_an_answer(gpus: list[int], monkeypatch):
    def run(command: list[str], timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_probe.subprocess, "run", run)
    assert trial(("0",)) == ("a product of two matrices took them more than 180 seconds",)


def test_a_torch_for_rocm_uses_no_gpu(gpus: list[int], monkeypatch):
    import torch

    gpus[0] = 0
    assert doctor.try_gpus() == "none"
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(RuntimeError, match=r"torch is built for ROCm 6\.2, whose GPUs are not used: jobs run on CPUs"):
        doctor.try_gpus()


def test_without_a_gpu_nothing_is_tried(gpus: list[int], monkeypatch):
    gpus[0] = 0
    monkeypatch.setattr(this_machine.gpu_probe, "reason_against", lambda gpus: pytest.fail("tried"))
    assert local_slots(1, None).device == "cpu" and doctor.try_gpus() == "none"


@pytest.fixture
def cards(gpus: list[int], monkeypatch) -> dict[str, str]:
    """What each of two cards ends a process with that multiplies there; a process that has both ends with the first."""
    ends: dict[str, str] = {"0": "", "1": ""}

    def run(command: list[str], env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        seen = env["CUDA_VISIBLE_DEVICES"].split(",")
        said = next((ends[card] for card in seen if ends[card]), "")
        return subprocess.CompletedProcess(command, 1 if said else 0, f"{len(seen)}\n", said)

    gpus[0] = 2
    monkeypatch.setattr(gpu_probe.subprocess, "run", run)
    return ends


ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"


def test_one_bad_card_leaves_the_others(cards: dict[str, str], monkeypatch):
    cards["0"] = ECC
    told: list[str] = []
    slots = local_slots(1, None, told.append)
    assert (slots.device, slots.count, slots.gpus) == ("cuda", 1, "1")
    assert told == [f"1 of 2 GPUs can be used: GPU 0: {ECC}"]
    found = doctor.check("GPUs", doctor.try_gpus)
    assert found == {"what": "GPUs", "ok": "no", "found": f"RuntimeError: {told[0]}"}
    # Ray's processes are to see the other one alone, and this one what it saw before.
    with visible(slots.gpus):
        assert gpu_count() == 1 and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert gpu_count() == 2 and "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    "taken",
    [
        "AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB.",
    ],
)
def test_a_card_that_others_are_on_is_no_bad_one(taken: str, cards: dict[str, str]):
    cards["1"] = taken
    assert trial(("0", "1")) == ("", "") and local_slots(1, None).count == 2
    trial.cache_clear()
    cards["0"] = ECC
    assert trial(("0", "1")) == (ECC, "")
    assert trial(("1",)) == ("",)


def test_cards_that_torch_does_not_see_are_missed(gpus: list[int], monkeypatch):
    """As where the driver counts two, and CUDA begins on one."""

    def run(command: list[str], env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
        if "1" in (seen := env["CUDA_VISIBLE_DEVICES"].split(",")) and len(seen) == 1:
            return subprocess.CompletedProcess(command, 1, "", "RuntimeError: No CUDA GPUs are available\n")
        return subprocess.CompletedProcess(command, 0, "1\n", "")

    monkeypatch.setattr(gpu_probe.subprocess, "run", run)
    gpus[0], told = 2, list[str]()
    assert local_slots(1, None, told.append).count == 1
    assert told == ["1 of 2 GPUs can be used: GPU 1: RuntimeError: No CUDA GPUs are available"]


@pytest.mark.slow
def test_a_file_of_the_users_stands_in_for_none_of_pythons(gpus: list[int], tmp_path: Path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    (why,) = trial(("0",))
    assert "the wrong one" not in why and "Error: " in why
