"""`benchmarks/gpu.py`, small and on a CPU: it says what is right, what is not, and what was not measured."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from robustlib.evaluation.batches import Ready
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.replica import Replica
from robustlib.inference.replicas import Replicas
from robustlib.inference.throughput import calibrate
from tests.helpers.fake_cuda import install

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
N = 24


@pytest.fixture(scope="module")
def gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield pytest.importorskip("gpu")
    for name in [name for name in sys.modules if name.partition("_")[0] == "gpu"] + ["attacks", "peers", "hard_nets"]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def checks(gpu: Any) -> Any:
    return sys.modules["gpu_checks"]


@pytest.fixture(scope="module")
def figures(gpu: Any) -> Any:
    return sys.modules["gpu_figures"]


@pytest.fixture(autouse=True)
def single_thread(own_threads: None) -> None:
    torch.set_num_threads(1)  # passes of a few small images, of which two threads make less where others work too


@pytest.fixture
def weights(net: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    return path


def run(gpu: Any, weights: Path, verdicts: np.ndarray, tmp_path: Path) -> tuple[Result, dict[str, dict[str, Any]]]:
    np.save(tmp_path / "verdicts.npy", verdicts)
    options = {"--model": "convnet3", "--weights": weights, "--dataset": "digits", "--eps": 0.3, "--examples": N}
    options |= {"--verdicts": tmp_path / "verdicts.npy", "--device": "cpu", "--out": tmp_path / "found.jsonl"}
    asked = ["correctness", *(str(word) for pair in options.items() for word in pair)]
    result = CliRunner().invoke(gpu.main, asked, catch_exceptions=False)
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    return result, {row["name"]: row for row in rows}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what adv-lib imports
def test_what_is_right_is_told_from_what_is_not(
    gpu: Any, checks: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At this radius every digit falls; a reference by which half of them stand is another network's."""
    result, found = run(gpu, weights, np.zeros(N, np.uint8), tmp_path)
    assert result.exit_code == 0, result.output
    not_here = found.pop("recorded steps")
    assert not_here["right"] is None and not_here["note"] == "not measured: a CPU records nothing"
    assert all(row["right"] for row in found.values()) and "WRONG" not in result.output
    assert found["deepfool, beside adv-lib"]["value"] == pytest.approx(1, abs=0.01)
    assert found["beyond float16's range: robust accuracy"]["value"] == 0
    assert found["autoattack, beside the reference"]["value"] == 0
    verdicts = (np.arange(N) % 2).astype(np.uint8)
    monkeypatch.setattr(gpu, "correctness", checks.autoattack)  # the others are as before
    result, found = run(gpu, weights, verdicts, tmp_path)
    assert result.exit_code == 1 and "WRONG" in result.output
    assert [name for name, row in found.items() if not row["right"]] == ["autoattack, beside the reference"]
    assert f"its {np.flatnonzero(verdicts).tolist()}" in found["autoattack, beside the reference"]["note"]


def test_recorded_gradients_that_are_wrong_are_told(gpu: Any, checks: Any, net: nn.Module, test):
    class Once(Graphs):
        """Gives the first gradient of a pass right, and the others not."""

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            seen: list[torch.Tensor] = []
            out = self.net(x)
            if out.requires_grad:
                out.register_hook(lambda g: g if not seen and seen.append(g) is None else torch.zeros_like(g))
            return out

    x, y = test[0][:32], test[1][:32]
    replicas = make_replicas(net, x, half=False)
    assert isinstance(replicas.search.net, nn.Module)
    recorded = Replica(Once(replicas.search.net), sizes=(16,), memory_format=torch.channels_last, recorded=True)
    replicas = replace(replicas, search=recorded, fine=recorded)
    case = gpu.Case(
        "convnet3", net, Ready(net, replicas, 10, 0.0), x, y, torch.device("cpu"), gpu.Budget(0.1, 1, 0.1, 8)
    )
    found = {check.name: check.right for check in checks.gradients(case)}
    assert found["search, 16 images, 1 value: recorded"] and found["search, 16 images, 1 value: the model's"]
    assert not found["search, 16 images, 10 values: recorded"]
    assert not found["search, 16 images, 10 values: the model's"]


def test_a_check_that_raises_is_a_wrong_one_and_the_next_are_asked(gpu: Any, checks: Any, monkeypatch):
    def one(name: str) -> Any:
        def part(*given: Any) -> Any:
            yield checks.Check(f"{name} begins", 0.0, "", True)
            if name == "ranges":
                raise RuntimeError("CUDA error: an illegal memory access\nmore")
            if name == "drift":
                raise KeyboardInterrupt

        part.__name__ = name
        return part

    for name in ("ranges", "gradients", "drift"):
        monkeypatch.setattr(checks, name, one(name))
    found = list[Any]()
    with pytest.raises(KeyboardInterrupt):
        for check in checks.correctness(SimpleNamespace(device=torch.device("cpu")), None):
            found.append(check)
    assert [(check.name, check.right) for check in found] == [
        ("ranges begins", True),
        ("ranges", False),
        ("gradients begins", True),
        ("drift begins", True),
    ]
    assert found[1].note == "RuntimeError: CUDA error: an illegal memory access"


def called(gpu: Any, tmp_path: Path, command: str, **options: Any) -> tuple[Result, list[dict[str, Any]]]:
    common = {"model": "convnet3", "dataset": "digits", "device": "cpu", "out": tmp_path / "found.jsonl"}
    words = [word for name, value in (common | options).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = CliRunner().invoke(gpu.main, [command, *words], catch_exceptions=False)
    return result, [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]


def by(rows: list[dict[str, Any]], task: str, unit: str) -> dict[str, Any]:
    return {row["library"]: row for row in rows if (row["task"], row["unit"]) == (task, unit)}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what adv-lib imports
def test_attacks_are_timed_beside_their_peers(gpu: Any, weights: Path, tmp_path: Path):
    result, rows = called(gpu, tmp_path, "attacks", weights=weights, eps=0.3, examples=N, batch_size=N)
    assert result.exit_code == 0, result.output
    for task, peers in (("pgd", 4), ("curve", 0), ("deepfool", 2), ("autoattack", 1)):
        assert len(by(rows, task, "s")) == 1 + peers and all(row["value"] > 0 for row in by(rows, task, "s").values())
        assert task == "deepfool" or by(rows, task, "floor share")["robustq"]["value"] > 0
    for task, unit in (("pgd", "robust accuracy"), ("curve", "robust accuracy"), ("deepfool", "median distance")):
        assert by(rows, task, unit)["robustq"]["right"] is True
    assert by(rows, "autoattack", "images otherwise")["robustq"]["right"] is True
    assert by(rows, "profile", "operator calls a step")["robustq"]["value"] > 10
    assert "launches a step" not in result.output  # which a CPU has not
    assert by(rows, "warm-up", "s")["robustq"]["value"] > 0
    assert by(rows, "floor", "gradients/s")["robustq"]["value"] > 0
    assert all(row["mode"].startswith(("bfloat16, folded", "float32, folded")) for row in rows if row["mode"])
    assert {row["model"] for row in rows} == {"convnet3"} and result.output.count("not measured: no GPU") == 7


def test_votes_are_those_of_strict_float32(gpu: Any, weights: Path, tmp_path: Path):
    options = {"weights": weights, "examples": 10, "votes": 100, "seconds": 60}
    result, rows = called(gpu, tmp_path, "smoothing", **options)
    votes, same = by(rows, "certify", "votes/s"), by(rows, "certify", "same radius")["robustq"]
    assert result.exit_code == 0 and set(votes) == {"robustq", "strict float32"}
    assert same["value"] == 1 and same["right"] is True and "mean radius 0." in same["note"]


def test_a_radius_that_nobody_voted_for_is_wrong(gpu: Any):
    smoothing = sys.modules["gpu_smoothing"]
    part = smoothing.Certificates(None, radii={"strict float32": torch.tensor([0.2, 0.3])})
    for mine, right in ((0.29, True), (0.31, False)):
        part.radii["robustq"] = torch.tensor([0.2, mine])
        assert part.agreement().right is right and part.agreement().value == 0.5


@pytest.mark.peers
def test_epochs_are_timed_beside_a_plain_loop(gpu: Any, tmp_path: Path):
    result, rows = called(gpu, tmp_path, "training", examples=90, steps=2)
    assert result.exit_code == 0
    assert set(by(rows, "standard training", "s")) == {"robustq", "plain loop"}
    assert set(by(rows, "pgd training", "s")) == {"robustq", "torchattacks"}
    assert all(row["value"] > 0 and "90 images an epoch" in row["note"] for row in rows)


def test_what_is_beyond_the_limit_of_time_is_told(gpu: Any, weights: Path, tmp_path: Path):
    result, rows = called(gpu, tmp_path, "all", weights=weights, examples=8, seconds=0)
    names = {row.get("name") or row["task"] for row in rows}
    assert {"gradients", "autoattack", "certify", "pgd", "curve", "deepfool", "profile"} <= names
    assert {row["value"] for row in rows} == {None} and result.exit_code == 0
    assert all(row["note"] == "not measured: 0 s were over" for row in rows)


def test_a_step_that_fails_leaves_the_others(figures: Any):
    def fails(error: Exception) -> Any:
        raise error

    steps = [
        ("pgd", "foolbox", lambda: fails(ModuleNotFoundError("No module named 'foolbox'"))),
        ("pgd", "adv-lib", lambda: fails(RuntimeError("CUDA error\nand more"))),
        ("pgd", "robustq", lambda: fails(RuntimeError("CUDA error"))),
        ("pgd", "torchattacks", lambda: [figures.Figure("attacks", "pgd", "torchattacks", 1.0, "s")]),
    ]
    found = list(figures.measured("attacks", steps, 10))
    assert [(one.value, one.right) for one in found] == [(None, None), (None, None), (None, False), (1.0, None)]
    assert [one.note for one in found] == [
        "not measured: No module named 'foolbox'",
        *["not measured: RuntimeError: CUDA error"] * 2,
        "",
    ]


def test_goals_are_reached_missed_or_not_measured(figures: Any):
    def figure(task: str, library: str, value: float, unit: str = "s", right: bool | None = None) -> Any:
        return figures.Figure("attacks", task, library, value, unit, right, model="resnet18")

    found = [
        *(figure("pgd", *row) for row in (("foolbox", 30.0), ("torchattacks", 6.0), ("robustq", 1.0))),
        figure("curve", "robustq", 2.5),
        figure("autoattack", "pyautoattack", 50.0),
        figure("autoattack", "robustq", 10.0),
        figure("deepfool", "adv-lib", 9.0),
        figure("deepfool", "robustq", 1.0),
        figure("deepfool", "robustq", 1.3, "median distance", False),
        figure("certify", "strict float32", 20_000.0, "votes/s"),
        figure("certify", "robustq", 100_000.0, "votes/s"),
        figure("certify", "robustq", 160_000.0, "votes/s"),
    ]
    said = [goal.said(found, gpu=True)[1:] for goal in figures.GOALS]
    assert said == [
        (6.0, "reached"),
        (None, "not measured"),  # of another network
        (2.5, "missed"),
        (5.0, "not measured: the numbers were compared with nothing"),
        (9.0, "missed: the numbers are wrong"),
        (160_000.0, "reached"),
        (None, "not measured"),
    ]
    assert {goal.said(found, gpu=False)[2] for goal in figures.GOALS} == {"not measured: no GPU"}
    assert [row[4] for row in figures.table(found)[:4]] == [None, None, 6.0, None]


def test_time_in_which_kernels_overlap_counts_once(gpu: Any):
    busy = sys.modules["gpu_profile"].busy
    assert busy([(3, 4), (0, 2), (1, 2.5), (1.2, 1.4)]) == 3.5 and busy([]) == 0


def test_verdicts_of_another_network_are_wrong(gpu: Any, figures: Any, tmp_path: Path):
    np.save(tmp_path / "verdicts.npy", np.ones(9, np.uint8))
    case = SimpleNamespace(ready=SimpleNamespace(mode=lambda eps: ""), budget=SimpleNamespace(eps=0.1))
    for verdicts in (tmp_path / "verdicts.npy", None):
        part = gpu.Attacks(case, verdicts)
        part.stands = {"pyautoattack": np.ones(6, bool), "robustq": np.arange(6) > 1}
        (found,) = part.compared("robustq")
        assert found.right is False and found.value == 2 and "its [0, 1]" in found.note
        assert [one.right for one in part.compared("pyautoattack")] == ([] if verdicts is None else [None])
        with figures.Log(tmp_path / "found.jsonl") as log:
            log.write([found])
        with pytest.raises(SystemExit, match="1"):
            gpu.show(log, "cpu")


def test_the_forms_of_a_gpu_are_timed_beside_each_other(
    gpu: Any, net: nn.Module, test, monkeypatch: pytest.MonkeyPatch
):
    install(monkeypatch)
    monkeypatch.setattr(sys.modules["gpu_attacks"], "batch_sizes", lambda x, dtype: (8, 16))
    x, y = test[0][:32], test[1][:32]
    ready = Ready(net, make_replicas(net, x, half=False), 10, 0.0)
    case = gpu.Case("convnet3", net, ready, x, y, torch.device("cpu"), gpu.Budget(0.1, 2, 0.1, 8))
    monkeypatch.setattr(
        sys.modules["gpu_attacks"], "calibrate", lambda replica, x, seconds: calibrate(replica, x, seconds=0.01)
    )
    found = list(gpu.Attacks(case, None).floor_of_forms())
    assert [one.note for one in found if one.unit == "forwards/s"] == [
        f"{dtype}, {form}, 16 images" for form in ("fused", "folded") for dtype in ("float16", "float32")
    ]
    assert all(one.value > 0 for one in found) and len(found) == 8
    assert found[0].mode == "float16, fused, channels-last, graphs"


def test_the_mode_of_a_task_tells_of_its_own_steps(gpu: Any, net: nn.Module, test):
    x, y = test[0][:4], test[1][:4]
    replica = Replica(net, sizes=(4,))
    ready = Ready(net, Replicas(replica, replica, replica), 10, 0.0)
    case = gpu.Case("convnet3", net, ready, x, y, torch.device("cpu"), gpu.Budget(0.1, 2, 0.1, 8))

    def attack(case: Any, *, recorded: bool) -> Tensor:
        with case.ready.replicas.playing():
            replica.recordings.played += recorded
        return case.x

    attacks = gpu.Attacks(case, None)
    modes = []
    for task, recorded in (("curve", True), ("deepfool", False)):
        found = list(attacks.measure(task, "robustq", partial(attack, recorded=recorded), case))
        modes.append({one.mode for one in found})
    assert modes == [{"float32, recorded steps"}, {"float32"}]


def test_launches_and_utilisation_of_a_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch):
    """As PyTorch's profiler tells them: calls of the host, and what the device did, in microseconds."""

    def event(name: str, device: str, start: float, end: float) -> SimpleNamespace:
        kind = SimpleNamespace(name=device)
        return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(start=start, end=end))

    profile = sys.modules["gpu_profile"]
    hosts = ["aten::mul", "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaGraphLaunch", "cudaMemcpyAsync"]
    events = [event(name, "CPU", 0, 1) for name in hosts]
    events += [event("multiply", "CUDA", 0, 3e5), event("add", "CUDA", 2e5, 4e5), event("Memcpy", "CUDA", 9e5, 1e6)]

    class Profiler(nullcontext):
        def __init__(self, activities: list[Any]):
            super().__init__(self)
            assert len(activities) == 2

        def events(self) -> list[Any]:
            return events

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    clock = iter([0.0, 2.0] * 2)
    monkeypatch.setattr(profile.time, "perf_counter", lambda: next(clock))
    found = {unit: value for value, unit in profile.profiled(lambda: None, 3, torch.device("cuda"))}
    assert found == {
        "launches a step": 1,
        "kernels and copies a step": 1,
        "utilisation": pytest.approx(0.25),
    }
    events.clear()
    with pytest.raises(RuntimeError, match="saw nothing on the device"):
        list(profile.profiled(lambda: None, 3, torch.device("cuda")))


class Looking(nn.Module):
    """Makes Python look at a number, which no recording holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 1e9 else x


@pytest.mark.parametrize("recordable", [True, False])
def test_recorded_steps_are_held_to_the_same_steps_one_by_one(
    recordable: bool, checks: Any, net: nn.Module, test: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    """On fakes of CUDA graphs: right where they are recorded and give the same, wrong where they could not be."""
    install(monkeypatch)
    monkeypatch.setattr(checks, "STEPS", {"pgd": ("Linf", {"steps": 12})})
    model = net if recordable else nn.Sequential(Looking(), net)
    replica = Replica(StepByStep(model), sizes=(8, 32), recorded=True, mode="float32")
    budget = sys.modules["peers"].Budget(eps=0.1, steps=12, step_size=0.02, batch_size=20)
    ready = Ready(model, Replicas(replica, replica, replica), 10, 0.0)
    case = sys.modules["attacks"].Case("net", model, ready, test[0][:20], test[1][:20], torch.device("cpu"), budget)
    (found,) = checks.recorded_steps(case)
    assert (found.value, found.right) == (0, recordable)
    assert found.note.endswith("float32, recorded steps") == recordable


class StepByStep(Graphs):
    """Calls the network itself: passes that nobody records."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)
