"""Factories that put their model on a GPU are queued on a machine without one, and what was not checked is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustlib.inference import model_modes
from robustlib.models.layers import Normalize
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import DataRef, ModelSpec, Statistics
from robustq.jobs.study.study import load_study
from robustq.jobs.submission import cost, dry_run
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.plan import Planned
from robustq.jobs.submission.validation import data_and_models

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without a GPU")

STUDY = """dataset: digits
models:
  mine: {file: "m.py:make"}
  plain: {file: "m.py:plain"}
attacks:
  - {name: pgd, eps: 0.1}
  - {name: transfer, surrogate: mine, eps: 0.1}
examples: 10
"""
MODULE = """import torch

def plain():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

def make():
    return plain().cuda()
"""


def planned(folder: Path, module: str, capsys: Any) -> tuple[list[Planned], str]:
    (folder / "m.py").write_text(module)
    (folder / "s.yaml").write_text(STUDY)
    study, origin = load_study(folder / "s.yaml", {})
    resolved = resolve(study, origin, folder, folder)
    capsys.readouterr()
    plan = expand(resolved)
    return cost.with_costs(plan, resolved), capsys.readouterr().err


@pytest.mark.slow
def test_a_factory_that_asks_for_a_gpu_is_queued(tmp_path: Path, capsys):
    plan, told = planned(tmp_path, MODULE, capsys)
    costs = {row.model: row.cost for row in plan if row.spec.kind == "eval"}
    assert costs["mine"] > 0 and costs["plain"] > 0
    assert "m.py:make asks for a GPU, which this machine has not: whether it builds, and takes the data" in told
    assert "plain asks" not in told


def test_any_other_fault_of_it_is_refused(tmp_path: Path, capsys):
    with pytest.raises(SpecError, match=r"s.yaml:3: .*not here"):
        planned(tmp_path, MODULE.replace("return plain().cuda()", "raise RuntimeError('not here')"), capsys)


@pytest.mark.slow
def test_a_dry_run_says_what_it_cannot_measure(tmp_path: Path):
    (tmp_path / "m.py").write_text(MODULE)
    (tmp_path / "s.yaml").write_text(STUDY)
    url = f"sqlite:///{tmp_path / 'none.db'}"
    found = json.loads(dry_run.dry_run(url, tmp_path / "s.yaml", {}, as_json=True))
    known = {(job["model"], job["attack"]): job["seconds"] for job in found["jobs"]}
    assert known[("plain", "pgd")] is not None and known[("mine", "pgd")] is None
    assert known[("plain", "transfer")] is None  # which makes its images on the other
    assert found["not_measured"] == ["mine", "plain"]
    assert found["total"]["seconds"] == sum(seconds or 0 for seconds in known.values())
    text = dry_run.dry_run(url, tmp_path / "s.yaml", {}, as_json=False)
    assert "will fail" not in text and text.endswith(
        "3 of them, of mine, plain, were not measured and are not in these seconds: "
        "the model or its surrogate asks for a GPU, which this machine has not"
    )


def test_a_first_layer_goes_to_where_the_model_is(monkeypatch):
    """As behind a factory that ends with `.cuda()`; the other device is one without numbers."""
    there = torch.device("meta")
    seen: list[set[torch.device]] = []

    def look(model: nn.Module, x: torch.Tensor, *given: Any) -> None:
        assert isinstance(next(model.children()), Normalize)
        seen.append({tensor.device for tensor in (x, *model.parameters(), *model.buffers())})

    monkeypatch.setattr(data_and_models, "device_of", lambda model, x: there)
    monkeypatch.setattr(model_modes, "check_device", lambda device: None)
    monkeypatch.setattr(data_and_models, "check_classes", look)
    monkeypatch.setattr("robustq.jobs.running.inputs.check_data", lambda ref: None)
    data = DataRef(place="digits", sha256="0" * 64)
    spec = ModelSpec(arch="lenet5", normalize=Statistics(mean=(0.5,), std=(0.5,)))
    data_and_models.check_model(spec, data, stated=True, trained=False)
    assert seen == [{there}]


def test_images_go_to_where_the_model_is(monkeypatch):
    """As on a driver with a GPU, where a factory has put the model there; the device is made up by its dtype's twin."""
    asked: list[nn.Module] = []
    there = torch.device("cpu")

    def device_of(model: nn.Module, x: torch.Tensor) -> torch.device:
        asked.append(model)
        return there

    monkeypatch.setattr(data_and_models, "device_of", device_of)
    data = DataRef(place="digits", sha256="0" * 64)
    monkeypatch.setattr("robustq.jobs.running.inputs.check_data", lambda ref: None)
    data_and_models.check_model(ModelSpec(arch="lenet5"), data, stated=False, trained=False)
    assert len(asked) == 1
