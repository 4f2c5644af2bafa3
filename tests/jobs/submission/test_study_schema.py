"""The JSON Schema of study files takes what a submission takes, and names what it does not."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.settings import AUDIT, CERTIFY, EXPLAIN
from robustq.jobs.study.entries import StudyModel
from robustq.jobs.study.study import Study
from robustq.jobs.submission import explanation_params
from robustq.jobs.submission.study_schema import study_schema
from robustq.jobs.submission.validation.parameters import complete_attack

ROOT = Path(__file__).parents[3]
STUDY: dict[str, Any] = {
    "name": "base",
    "dataset": "parquet:some/where",
    "models": {
        "plain": {"arch": "lenet5", "train": {"objective": "pgd", "eps": "8/255", "steps": 3, "epochs": 2}},
        "mine": {"file": "m.py:make", "options": {"width": 3}, "normalize": {"mean": 0.5, "std": [0.25]}},
        "given": {"arch": "torchvision:resnet50", "weights": "w.pt", "defence": [{"name": "bit_depth", "bits": 3}]},
        "many": {
            "grid": {"arch": ["lenet5", "convnet3"]},
            "train": {"objective": "pgd", "grid": {"steps": [1, 3], "epochs": [2]}},
        },
        "one": {"arch": "lenet5", "weights": "w.pt", "defence": {"name": "median"}, "train": None},
    },
    "attacks": [
        {"name": "pgd", "eps": [0.1, "2/255"], "steps": 5, "norm": "L2", "restarts": 2},
        {"name": "corruption", "kind": "all", "severity": [1, 5]},
        {"name": "certify", "norm": "L2", "eps": 0.25, "n": 1000},
        {"name": "transfer", "surrogate": "plain", "eps": "8/255"},
        {"name": "pgd", "eps": 0.1, "grid": {"steps": [5, 10], "restarts": [1, 2]}},
    ],
    "seeds": [0, 1],
    "examples": "all",
    "size": [224, 320],
    "train": {"batch_size": 64, "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = study_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def documents() -> list[Any]:
    texts = [path.read_text() for path in sorted((ROOT / "studies").glob("*.yaml"))]
    for page in sorted((ROOT / "docs").glob("*.md")):
        texts += re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    return [found for text in texts if "models" in (found := yaml.safe_load(text))]


def test_the_projects_studies_and_those_of_the_docs_are_taken(validator):
    found = documents()
    assert len(found) >= 4
    for study in [*found, STUDY]:
        assert [error.message for error in validator.iter_errors(study)] == []


WRONG = [
    ("datset", "digits", ()),
    ("dataset", "digit", ()),
    ("examples", "some", ()),
    ("seeds", 0, ()),
    ("split", "tets", ()),
    ("arhc", "lenet5", ("models", "plain")),
    ("arch", "lenet6", ("models", "plain")),
    ("normalize", "cifar", ("models", "plain")),
    ("epoch", 3, ("models", "plain", "train")),
    ("objective", "pdg", ("models", "plain", "train")),
    ("optimizer", "rmsprop", ("models", "plain", "train")),
    ("validation", 1.5, ("models", "plain", "train")),
    ("bit", 3, ("models", "given", "defence", 0)),
    ("bits", 9, ("models", "given", "defence", 0)),
    ("name", "jpg", ("models", "given", "defence", 0)),
    ("name", "pdg", ("attacks", 0)),
    ("stepz", 3, ("attacks", 0)),
    ("steps", 0, ("attacks", 0)),
    ("steps", "many", ("attacks", 0)),
    ("loss", "dlrr", ("attacks", 0)),
    ("norm", "linf", ("attacks", 0)),
    ("eps", -0.1, ("attacks", 0)),
    ("surrogate", "plain", ("attacks", 0)),
    ("kind", "rain", ("attacks", 1)),
    ("eps", 0.1, ("attacks", 1)),
    ("norm", "Linf", ("attacks", 2)),
    ("momentums", 0.9, ("train",)),
    ("grid", {"stepz": [3]}, ("attacks", 4)),
    ("grid", {"steps": 3}, ("attacks", 4)),
    ("grid", {"train": [{}]}, ("models", "many")),
]


@pytest.mark.parametrize(("name", "value", "where"), WRONG, ids=[f"{name} {value}" for name, value, _ in WRONG])
def test_what_is_misspelt_or_out_of_range_is_named(validator, name: str, value: Any, where: tuple[Any, ...]):
    study = copy.deepcopy(STUDY)
    part = study
    for key in where:
        part = part[key]
    part[name] = value
    assert len(list(validator.iter_errors(study))) > 0


def test_it_knows_every_entry_and_every_parameter(validator):
    properties = validator.schema["properties"]
    assert properties.keys() == Study.model_fields.keys()
    assert properties["models"]["additionalProperties"]["properties"].keys() == StudyModel.model_fields.keys() | {
        "grid"
    }
    attacks = properties["attacks"]["items"]
    assert attacks["properties"]["name"]["enum"] == [*ATTACKS, *ENSEMBLES, CERTIFY, AUDIT, EXPLAIN]
    for case in attacks["allOf"]:
        name, known = case["if"]["properties"]["name"]["const"], case["then"]["properties"]
        if name == EXPLAIN:
            own = {"method", "against", *explanation_params.measure_settings()}
            assert known.keys() == own | {"name", "norm", "eps", "grid"}
            continue
        radius = {"eps": 0.1} if "eps" in known else {}
        complete = complete_attack(name, None, radius.get("eps"), 1, {})
        assert set(complete.params) == known.keys() - {"name", "norm", "eps", "restarts", "surrogate", "grid"}
        with pytest.raises(ValueError, match="has no parameter"):
            complete_attack(name, None, radius.get("eps"), 1, {"no such": 1})
