"""A study is refused, with its line, for every number that the kernels refuse."""

import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from robustlib.arguments import keywords
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.defences import DEFENCES
from robustlib.defences.smoothing import certify
from robustq.cluster.remote.before_sending import check_settings
from robustq.jobs.errors import SpecError
from robustq.jobs.specs import DefenceSpec
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.validation.parameters import (
    attack_parameters,
    complete_attack,
    complete_defence,
    complete_training,
)

MAY_BE_ZERO = {"eps", "confidence", "overshoot", "decay"}  # written out: what 0 does not switch off


def bad_numbers() -> list[tuple[str, str, Any]]:
    found = []
    attacks = {name: attack_parameters(attack) for name, attack in (ATTACKS | ENSEMBLES).items()}
    others = {name: keywords(function) for name, function in (DEFENCES | {"certify": certify}).items()}
    del others["certify"]["draws"]
    for name, params in (attacks | others).items():
        for param, known in params.items():
            kinds = {known.annotation, *get_args(known.annotation)}
            if kinds & {int, float}:
                values = [-1, math.nan, math.inf, True, "1"] + [0] * (param not in MAY_BE_ZERO)
                found += [(name, param, value) for value in values + [2.5] * (float not in kinds)]
    return found


@pytest.mark.parametrize(("name", "param", "value"), bad_numbers())
def test_a_number_out_of_its_range_is_refused(name: str, param: str, value: Any):
    with pytest.raises(ValueError, match=f"^{name}: expected {param} .*, got {value!r}"):
        if name in DEFENCES and param in keywords(DEFENCES[name]):
            complete_defence(DefenceSpec(name=name, params={param: value}))
        else:
            complete_attack(name, None, 0.1 if name == "certify" else None, 1, {param: value})


STUDY: dict[str, Any] = {
    "name": "small",
    "models": {"a": {"arch": "lenet5", "train": {"objective": "pgd", "eps": 0.1, "epochs": 2}}},
    "examples": 10,
}


def refusal(folder: Path, attack: dict[str, Any], train: dict[str, Any]) -> str:
    """What a study with this attack, in its line 5, and these settings of its training, in line 3, is refused with."""
    models = {"a": {"arch": "lenet5", "train": STUDY["models"]["a"]["train"] | train}}
    lines = [yaml.safe_dump(part, default_flow_style=True, width=10**6).strip() for part in (models, [attack])]
    path = folder / "study.yaml"
    path.write_text(f"name: small\nmodels:\n  {lines[0]}\nattacks:\n  {lines[1]}\nexamples: 10\n")
    with pytest.raises(SpecError) as caught:
        study, origin = load_study(path, {})
        expand(resolve(study, origin, folder, folder))
    return str(caught.value).removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"name": "cw", "initial_const": 0}, "5: cw: expected initial_const above 0, got 0"),
        ({"name": "cw", "step_size": math.inf}, "5: cw: expected step_size above 0 and finite, got inf"),
        ({"name": "cw", "norm": "Linf"}, "5: cw: expected norm L2, got 'Linf'"),
        ({"name": "fmn", "step_size": 0}, "5: fmn: expected step_size above 0, got 0"),
        ({"name": "fmn", "step_size": True}, "5: fmn: expected step_size of type float, got True"),
        ({"name": "square", "share": 0}, "5: square: expected share above 0 and at most 1, got 0"),
        (
            {"name": "spsa", "queries": 60},
            "5: spsa: expected queries of at least 66, got 60: it would not come to a step",
        ),
        ({"name": "hopskipjump", "queries": 20}, "5: hopskipjump: expected queries of at least 38, got 20"),
        ({"name": "audit", "queries": 0, "eps": 0.1}, "5: audit: expected queries of at least 1, got 0"),
        ({"name": "certify", "sigma": 0, "eps": 0.1}, "5: certify: expected sigma above 0, got 0"),
    ],
)
def test_a_study_names_the_line_of_an_attack(tmp_path: Path, attack: dict, message: str):
    assert refusal(tmp_path, attack, {}).startswith(message)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"steps": 0}, "3: training on pgd: expected steps of at least 1, got 0"),
        ({"step_size": 0}, "3: training on pgd: expected step_size above 0, got 0"),
        ({"eps": math.nan}, "3: training on pgd: expected eps of at least 0, got nan"),
        ({"eps": 8}, "3: training on pgd: expected eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?"),
        ({"eps": 8, "validation_eps": 0.1}, "3: training on pgd: expected eps in [0, 1] for images in [0, 1], got 8"),
        (
            {"validation_eps": 8},
            "3: expected validation_eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?",
        ),
        ({"objective": "standard", "eps": 8}, "3: training has no setting 'eps', it has: batch_size, crop"),
        ({"momentum": 1}, "3: expected momentum of at least 0 and below 1, got 1.0"),
        ({"weight_decay": math.inf}, "3: expected weight_decay of at least 0 and finite, got inf"),
        ({"objective": "deepfool", "norm": "L1"}, "3: training on deepfool: expected norm L2 or Linf, got 'L1'"),
    ],
)
def test_a_study_names_the_line_of_a_training(tmp_path: Path, train: dict, message: str):
    assert refusal(tmp_path, {"name": "clean"}, train).startswith(message)


def test_a_setting_for_all_is_refused_with_the_model_it_is_wrong_for(tmp_path: Path):
    """Also before anything is sent to a cluster: the line is that of the model, where the setting does not stand."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "train: {epochs: 1, eps: 8}\nmodels:\n  plain: {arch: lenet5, train: {objective: standard}}\n"
        "  hardened: {arch: lenet5, train: {objective: pgd}}\nattacks: [{name: fgsm}]\n"
    )
    study, origin = load_study(path, {})
    said = "study.yaml:4: model hardened: training on pgd: expected eps in [0, 1] for images in [0, 1], got 8: did you "
    for check in (lambda: check_settings(study, origin), lambda: expand(resolve(study, origin, tmp_path, tmp_path))):
        with pytest.raises(SpecError, match=re.escape(said)):
            check()


def test_training_in_l2_may_go_beyond_1():
    settings = complete_training(
        {"objective": "pgd", "validation_norm": "L2", "validation_eps": 2.0}, {"norm": "L2", "eps": 2.0}
    )
    assert settings.validation_eps == settings.attack["eps"] == 2.0
