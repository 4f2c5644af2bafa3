"""Attacked images that an evaluation stores."""

from pathlib import Path

import safetensors.torch
import torch

from robustlib.evaluation.kept_images import KeptImages
from robustq.jobs.running.context import Context, Result
from robustq.jobs.running.run import run
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec
from robustq.jobs.store import artifacts


def test_images_in_channels_last_are_stored(tmp_path: Path, monkeypatch):
    """As of a network in that order, which safetensors refuses. Digits have one channel, and no order of it."""
    x = torch.rand(2, 3, 8, 8)
    monkeypatch.setattr(KeptImages, "first_images", lambda kept: x.contiguous(memory_format=torch.channels_last))
    monkeypatch.setattr("robustq.jobs.running.inputs.check_data", lambda ref: None)
    data, attack = DataRef(place="digits", sha256="0" * 64), AttackSpec(name="fgsm", norm="Linf", eps=0.1)
    spec = EvalSpec(model=ModelSpec(arch="lenet5"), data=data, attack=attack, examples=10, images=2)
    (found,) = [step for step in run(spec, Context("cpu", str(tmp_path))) if isinstance(step, Result)]
    stored = safetensors.torch.load(artifacts.get(str(tmp_path), found.artifacts[0].sha256))
    assert torch.equal(stored["x_adv"], x)
