"""Specs are data with a content key: what a job does decides it, where its files lie does not."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from robustlib.settings import TrainSettings
from robustq.jobs.specs import AttackSpec, CodeRef, DataRef, EvalSpec, FileRef, ModelSpec, TrainSpec, WorstSpec, parse
from robustq.jobs.text.number_parsing import number

DATA = DataRef(place="parquet:/a/b", sha256="d" * 64)
MODEL = ModelSpec(
    code=CodeRef(place="/home/me/model.py", factory="build", sha256="c" * 64),
    weights=FileRef(place="/home/me/w.safetensors", sha256="f" * 64),
)
EVAL = EvalSpec(model=MODEL, data=DATA, attack=AttackSpec(name="pgd", norm="Linf", eps=8 / 255, params={"steps": 20}))
TRAIN = TrainSpec(model=ModelSpec(arch="lenet5"), data=DATA, settings=TrainSettings(epochs=3))


@pytest.mark.parametrize("spec", [EVAL, TRAIN, WorstSpec(evals=("a", "b"), norm="L2", eps=0.5)], ids=lambda s: s.kind)
def test_json_both_ways(spec):
    assert parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    assert parse(spec.model_dump(mode="json")).key() == spec.key()


def test_the_key_is_the_hash_of_the_canonical_json():
    spec = WorstSpec(evals=("a",), norm="Linf", eps=0.25)
    text = '{"kernel":"7","spec":{"eps":0.25,"evals":["a"],"kind":"worst","norm":"Linf"}}'
    assert spec.key() == hashlib.sha256(text.encode()).hexdigest()


def test_where_files_lie_does_not_matter():
    moved = ModelSpec(
        code=CodeRef(place="/elsewhere/model.py", factory="build", sha256="c" * 64),
        weights=FileRef(place="/elsewhere/w.safetensors", sha256="f" * 64),
    )
    elsewhere = DataRef(place="parquet:/c", sha256="d" * 64)
    assert EVAL.model_copy(update={"model": moved, "data": elsewhere}).key() == EVAL.key()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"examples": "all"},
        {"data": DataRef(place="parquet:/a/b", sha256="e" * 64)},
        {"train": "k" * 64},
        {"model": ModelSpec(code=CodeRef(place="/home/me/model.py", factory="other", sha256="c" * 64))},
        {"attack": AttackSpec(name="pgd", norm="Linf", eps=8 / 255, params={"steps": 21})},
        {"attack": AttackSpec(name="pgd", norm="Linf", eps=8 / 255, restarts=2, params={"steps": 20})},
        {"attack": AttackSpec(name="pgd", norm="Linf", eps=8 / 255, curve=(4 / 255, 8 / 255), params={"steps": 20})},
    ],
    ids=str,
)
def test_what_a_job_does_decides_its_key(change):
    assert EVAL.model_copy(update=change).key() != EVAL.key()


def test_the_batch_size_does_not_decide_it():
    assert EVAL.model_copy(update={"batch_size": 128}).key() == EVAL.key()


def test_recipes_name_what_ran():
    attack = AttackSpec(name="pgd", norm="Linf", eps=0.1, restarts=2, curve=(0.1, 0.2), params={"steps": 20})
    assert attack.recipe == "pgd(steps=20) x2, 2 radii as one search"
    assert AttackSpec(name="autoattack", norm="L2", eps=0.5, params={"version": "plus"}).recipe == "autoattack-plus/1"


def test_a_model_says_what_of_it_is_absent():
    named, given = ModelSpec(arch="lenet5"), MODEL
    assert (named.reference, named.entry, named.file_hashes, named.shown_arch) == (None, None, [None, None], "lenet5")
    assert (given.reference, given.shown_arch) == ("/home/me/model.py:build", "model.py:build")
    assert (given.entry, given.file_hashes) == (None, ["f" * 64, "c" * 64])


def test_specs_are_frozen_and_strict():
    with pytest.raises(ValidationError):
        EVAL.seed = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        AttackSpec.model_validate({"name": "pgd", "stepz": 3})


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), (" 1 / 4 ", 0.25), ("0.5/2", 0.25), ("1/0", "1/0"), ("a/b", "a/b"), (3, 3)]
)
def test_fractions_are_numbers(text, value):
    assert number(text) == value


def test_the_recipe_says_what_ran():
    attack = AttackSpec(
        name="pgd", norm="Linf", eps=0.1, restarts=2, params={"steps": 20, "step_size": None, "loss": "ce"}
    )
    assert attack.recipe == "pgd(loss=ce, steps=20) x2"
