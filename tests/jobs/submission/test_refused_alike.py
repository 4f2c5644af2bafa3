"""Refusals of what the kernels do not take: one sentence for a study, an option and a call from Python."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from robustlib.attacks import ATTACKS
from robustlib.audit.audit import audit
from robustlib.evaluation.batches import evaluate_batches
from robustlib.models import build
from robustlib.models.randomised import dropout_at_inference
from robustlib.settings import TrainSettings
from robustq import cli
from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve

X, Y = torch.full((2, 1, 8, 8), 0.5), torch.tensor([0, 1])
RADII = ["-0.1", "-1e-9", "2", "8", "300", "nan", "inf", "1e400", "-inf"]


def network() -> torch.nn.Module:
    return build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8)).eval()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save(network().state_dict(), "w.pt")
    return tmp_path


def sentence(error: BaseException | str) -> str:
    """What was expected and what came, without the place before it."""
    text = str(error).strip()
    return text[text.index("expected ") :]


def by_python(call: Any, *args: Any, **given: Any) -> str:
    with pytest.raises((ValueError, TypeError)) as error:
        for _ in call(*args, **given):  # evaluations and audits are generators
            pass
    return sentence(error.value)


def by_study(model: dict[str, Any], attack: dict[str, Any], **more: Any) -> str:
    data = {"name": "s", "dataset": "digits", "models": {"a": {"arch": "lenet5"} | model}, "attacks": [attack], **more}
    Path("s.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SpecError) as error:
        study, origin = load_study(Path("s.yaml"), {})
        expand(resolve(study, origin, Path(), Path()))
    assert str(error.value).startswith("s.yaml:") and "\n" not in str(error.value)
    return sentence(error.value)


def by_option(*words: str) -> str:
    refused = CliRunner().invoke(cli.main, list(words), prog_name="robustq")
    assert refused.exit_code == 2 and not Path(".robustq").exists(), refused.output
    return sentence(refused.stderr.splitlines()[-1])


GIVEN = {"weights": "w.pt"}
ATTACK = ("attack", "lenet5", "--weights", "w.pt", "--dataset", "digits")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd", "square"])
@pytest.mark.parametrize("text", RADII)
def test_a_radius_is_refused_alike(folder: Path, text: str, name: str):
    found = by_python(ATTACKS[name], network(), X, Y, eps=float(text))
    assert found.startswith("expected eps ")
    assert by_study(GIVEN, {"name": name, "eps": float(text)}) == found
    assert by_study(GIVEN, {"name": name, "eps": text}) == found
    assert by_option(*ATTACK, "--attack", name, f"--eps={text}") == found


@pytest.mark.parametrize("text", ["0", "-0.1", "2", "nan", "inf"])
def test_a_radius_of_an_audit_is_refused_alike(folder: Path, text: str):
    found = by_python(audit, network(), X, Y, eps=float(text))
    assert by_study(GIVEN, {"name": "audit", "eps": float(text)}) == found
    assert by_option("audit", "lenet5", "--weights", "w.pt", "--dataset", "digits", f"--eps={text}") == found


@pytest.mark.parametrize(("name", "norm"), [("pgd", "L2"), ("pgd", "L1"), ("cw", None), ("fmn", None)])
def test_a_radius_beyond_1_is_taken_alike_but_in_linf(folder: Path, name: str, norm: str | None):
    """Also where the attack's own norm is L2, and nothing names it."""
    given = {} if norm is None else {"norm": norm}
    budget = {"steps": 1}
    assert ATTACKS[name](network(), X, Y, eps=2.0, **given, **budget).shape == X.shape
    attack = {"name": name, "eps": 2} | given | budget
    data = {"name": "s", "models": {"a": {"arch": "lenet5"} | GIVEN}, "attacks": [attack]}
    Path("s.yaml").write_text(yaml.safe_dump(data))
    study, origin = load_study(Path("s.yaml"), {})
    (job,) = expand(resolve(study, origin, Path(), Path()))
    assert job.spec.model_dump()["attack"]["eps"] == 2.0


@pytest.mark.parametrize("text", ["wide", "1/0", "8/255/2", "yes", ""])
def test_what_is_no_radius_is_refused_alike(folder: Path, text: str):
    found = by_study(GIVEN, {"name": "pgd", "eps": text})
    assert found == f"expected a number such as 8/255, got {text!r}"
    assert by_option(*ATTACK, "--attack", "pgd", f"--eps={text}") == found


@pytest.mark.parametrize(
    ("name", "param", "value"),
    [
        ("pgd", "steps", 0), ("pgd", "step_size", math.inf), ("square", "share", 1.5), ("cw", "initial_const", 0),
        ("fmn", "radius_step", 1.0), ("deepfool", "overshoot", -0.1),
    ],
)  # fmt: skip
def test_a_parameter_is_refused_alike(folder: Path, name: str, param: str, value: float):
    found = by_python(ATTACKS[name], network(), X, Y, **{param: value})
    assert by_study(GIVEN, {"name": name, param: value}) == found
    text = {math.inf: ".inf"}.get(value, str(value))
    assert by_option(*ATTACK, "--attack", name, "--param", f"{param}={text}") == found


def test_settings_of_trainings_and_evaluations_are_refused_alike(folder: Path):
    clean = {"name": "clean"}
    found = by_python(TrainSettings, epochs=0)
    assert by_study({"train": {"epochs": 0}}, clean) == found == "expected epochs of at least 1, got 0"
    assert by_option("train", "lenet5", "--dataset", "digits", "--epochs", "0", "--out", "w.safetensors") == found
    for name in ("draws", "eot_draws", "batch_size"):
        found = by_python(evaluate_batches, network(), X, Y, [], **{name: 0})
        assert by_study(GIVEN, clean, **{name: 0}) == found == f"expected {name} of at least 1, got 0"
    found = by_python(audit, network(), X, Y, queries=0)
    assert by_study(GIVEN, {"name": "audit", "eps": 0.1, "queries": 0}) == found
    words = ("audit", "lenet5", "--weights", "w.pt", "--dataset", "digits", "--eps", "0.1")
    assert by_option(*words, "--queries", "0") == found
    found = by_python(dropout_at_inference, network(), p=1.5)
    assert by_study(GIVEN | {"dropout_at_inference": 1.5}, clean) == found
