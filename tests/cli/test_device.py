"""The choice of a device: CPUs hide the GPUs, and a GPU that is not there is refused before anything is written."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustq import cli
from robustq.cluster import device as devices
from robustq.cluster.device import use_device
from robustq.jobs.errors import RunError

STUDY = "models: {a: {arch: lenet5, train: {epochs: 1}}}\nattacks: [{name: fgsm}]\n"


def test_cpu_hides_the_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_device(None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    use_device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("ids", "reasons", "why"),
    [([], [], "there is none"), (["0", "1"], ["no kernel image", "no kernel image"], "no kernel image")],
)
def test_a_gpu_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, ids, reasons, why: str):
    monkeypatch.setattr(devices, "gpu_ids", lambda: ids)
    monkeypatch.setattr(devices.gpu_probe, "trial", lambda found: reasons)
    with pytest.raises(RunError, match=rf"^--device cuda: this machine has no GPU that can be used \({why}\)"):
        use_device("cuda")


def test_one_that_can_be_used_is_enough(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "gpu_ids", lambda: ["0", "1"])
    monkeypatch.setattr(devices.gpu_probe, "trial", lambda found: ["no kernel image", ""])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_device("cuda")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"  # which of them, the run finds out


@pytest.mark.parametrize(
    "words",
    [["run", "s.yaml"], ["attack", "lenet5"], ["audit", "lenet5", "--eps", "0.1"], ["train", "lenet5"], ["drive"]],
    ids=lambda words: words[0],
)
def test_commands_refuse_it_before_they_write(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(STUDY)
    monkeypatch.setattr(devices, "gpu_ids", list)
    refused = CliRunner().invoke(cli.main, ["--store", "r.db", *words, "--device", "cuda"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert (
        refused.stderr.startswith("robustq: --device cuda: this machine has no GPU") and "\n" not in refused.stderr[:-1]
    )
    assert not (tmp_path / "r.db").exists()


def test_a_cluster_has_its_own(tmp_path: Path):
    refused = CliRunner().invoke(cli.main, ["drive", "--address", "auto", "--device", "cpu"])
    assert refused.exit_code == 2
    assert refused.stderr == (
        "robustq: --device has no effect with --address: a cluster computes on what its nodes have\n"
    )
