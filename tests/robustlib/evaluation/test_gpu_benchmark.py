"""`benchmarks/gpu.py correctness`, small and on a CPU: it says what is right, and what is not."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from torch import nn

from robustlib.evaluation.batches import Ready
from robustlib.inference.cuda_graphs import Graphs
from robustlib.inference.fast_copy import make_replicas
from robustlib.inference.replica import Replica

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
N = 24


@pytest.fixture(scope="module")
def gpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield pytest.importorskip("gpu")
    for name in ("gpu", "attacks", "peers", "hard_nets"):
        sys.modules.pop(name, None)


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
    gpu: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At this radius every digit falls; a reference by which half of them stand is another network's."""
    result, found = run(gpu, weights, np.zeros(N, np.uint8), tmp_path)
    assert result.exit_code == 0, result.output
    assert all(row["right"] for row in found.values()) and "WRONG" not in result.output
    assert found["deepfool, beside adv-lib"]["value"] == pytest.approx(1, abs=0.01)
    assert found["beyond float16's range: robust accuracy"]["value"] == 0
    assert found["autoattack, beside the reference"]["value"] == 0
    verdicts = (np.arange(N) % 2).astype(np.uint8)
    monkeypatch.setattr(gpu, "correctness", gpu.autoattack)  # the others are as before
    result, found = run(gpu, weights, verdicts, tmp_path)
    assert result.exit_code == 1 and "WRONG" in result.output
    assert [name for name, row in found.items() if not row["right"]] == ["autoattack, beside the reference"]
    assert f"its {np.flatnonzero(verdicts).tolist()}" in found["autoattack, beside the reference"]["note"]


def test_recorded_gradients_that_are_wrong_are_told(gpu: Any, net: nn.Module, test):
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
    found = {check.name: check.right for check in gpu.gradients(case)}
    assert found["search, 16 images, 1 values: recorded"] and found["search, 16 images, 1 values: the model's"]
    assert not found["search, 16 images, 10 values: recorded"]
    assert not found["search, 16 images, 10 values: the model's"]
