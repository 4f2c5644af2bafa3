"""Keys of jobs that are stored: a field, parameter or setting that is new leaves them as they are.

What to do where one of these changes: docs/contributing.md, "A new field of a spec".
"""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import model_serializer

from robustlib import KERNEL_VERSION
from robustlib.arguments import Norm
from robustlib.attacks import ATTACKS, ENSEMBLES
from robustlib.defences import DEFENCES
from robustlib.settings import TrainSettings
from robustq.jobs import specs
from robustq.jobs.specs import (
    AttackSpec,
    CodeRef,
    DataRef,
    DefenceSpec,
    EvalSpec,
    FileRef,
    ModelSpec,
    ProbeSpec,
    ShardSpec,
    Spec,
    SurrogateSpec,
    TrainSpec,
    WorstSpec,
)
from robustq.jobs.study.entries import StudyAttack
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import resolve
from robustq.jobs.submission.explanation_params import explanation_specs
from robustq.jobs.submission.study_marks import sums_gradients
from robustq.jobs.submission.validation.parameters import complete_attack, complete_defence
from robustq.jobs.text.canonical_json import canonical

# The beginnings of keys under kernels of version 7. A new attack or defence gets its own; none of them changes.
ATTACK_KEYS = {
    "clean": "a5f508a3115f", "fgsm": "c56053f04b7e", "pgd": "9e0086cae2bc", "mifgsm": "1aa8eb3e0739",
    "apgd-ce": "da6926ef1962", "apgd-dlr": "5115197dea75", "apgd-t": "8facc40ad361", "fab": "01861910f6e6",
    "fab-t": "743625e2e087", "square": "3f3c40bac865", "deepfool": "ad93633e03e9", "cw": "3a1806d296b1",
    "fmn": "bd4407d9bee5", "spsa": "f40eff7ac0e4", "nes": "5f0cd6d9b819", "hopskipjump": "d3bbf4944886",
    "noise": "2f61121356fd", "transfer": "b5179dcdb9d8", "corruption": "1ea912386ab4", "autoattack": "f270342642ee",
    "audit": "bb85ab4bfb2f", "certify": "0e929dd94c84",
}  # fmt: skip
DEFENCE_KEYS = {
    "jpeg": "7d839a5e6182", "bit_depth": "b3c6afb84391", "median": "5b7807ade373", "resize_pad": "b87c0825c093",
    "noise": "765dfeb99968", "smoothing": "01bffe6140d6", "dropout": "a04a9e45c60e",
}  # fmt: skip
KEYS = {
    "train": "dcafd06d7c33", "eval": "bbf7e582b343", "shard": "29bc37d9ec7e", "surrogate": "f87ba1f033cc",
    "defended": "030d6d5bed75", "worst": "b842baa5c3bf", "probe": "6dd5e1eabfa4",
}  # fmt: skip

DATA = DataRef(place="digits", sha256="d" * 64)
NET = ModelSpec(arch="lenet5")
GIVEN = ModelSpec(
    code=CodeRef(place="/home/me/model.py", factory="build", sha256="c" * 64),
    weights=FileRef(place="/w", sha256="f" * 64),
)
DEFENDED = ModelSpec(arch="lenet5", defence=(DefenceSpec(name="jpeg", params={"quality": 50}),))
SOURCE = SurrogateSpec(model=NET, settings=TrainSettings(), train="k" * 64)
PGD = AttackSpec(name="pgd", norm="Linf", eps=0.1, params={"steps": 20})
CLEAN = AttackSpec(name="clean")
TRANSFER = AttackSpec(name="transfer", norm="Linf", eps=0.1, surrogate=SOURCE)
SPECS = {
    "train": TrainSpec(model=NET, data=DATA, settings=TrainSettings()),
    "eval": EvalSpec(model=GIVEN, data=DATA, attack=PGD),
    "shard": ShardSpec(model=NET, train="k" * 64, data=DATA, attack=CLEAN, first=0, last=100),
    "surrogate": EvalSpec(model=NET, data=DATA, attack=TRANSFER),
    "defended": EvalSpec(model=DEFENDED, data=DATA, attack=CLEAN),
    "worst": WorstSpec(evals=("a", "b"), norm="L2", eps=0.5),
    "probe": ProbeSpec(number=1),
}
NEEDED = {"audit": {"eps": 0.1}, "certify": {"eps": 0.1, "given": {"sigma": 0.25}}}  # what has no default


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "KERNEL_VERSION", "7")


@pytest.mark.parametrize("kind", KEYS)
def test_the_key_of_a_kind_of_job_stays(kind: str):
    assert SPECS[kind].key().startswith(KEYS[kind])


@pytest.mark.parametrize("name", [*ATTACKS, *ENSEMBLES, *NEEDED])
def test_the_key_of_an_attack_with_its_defaults_stays(name: str):
    usual: dict[str, Any] = {"norm": None, "eps": None, "restarts": 1, "given": {}}
    assert complete_attack(name, **usual | NEEDED.get(name, {})).key().startswith(ATTACK_KEYS[name])


@pytest.mark.parametrize("name", DEFENCES)
def test_the_key_of_a_defence_with_its_defaults_stays(name: str):
    assert complete_defence(DefenceSpec(name=name)).key().startswith(DEFENCE_KEYS[name])


@pytest.mark.parametrize(
    ("norm", "queries", "marked"), [("L1", 12, True), ("L1", 1, False), ("L2", 12, False), ("Linf", 12, False)]
)
def test_transfers_whose_steps_in_l1_were_coarser_stand_for_nothing(norm: Norm, queries: int, marked: bool):
    """Those in L1 whose model is asked on the way, and no others."""
    found = complete_attack("transfer", norm=norm, eps=1.0, restarts=1, given={"queries": queries})
    then = found.model_copy(update={"whole_steps": False})
    assert (found.key() != then.key(), "whole_steps" in found.model_dump()) == (marked, marked)
    assert AttackSpec.model_validate(found.model_dump(mode="json")) == found


def test_audits_whose_surrogates_had_no_gradient_stand_for_nothing():
    found = complete_attack("audit", norm="Linf", eps=0.1, restarts=1, given={})
    then = found.model_copy(update={"surrogate_gradients": False})
    assert found.key() != then.key() and "surrogate_gradients" not in then.model_dump()
    assert AttackSpec.model_validate(found.model_dump(mode="json")) == found


def test_surrogates_that_learnt_from_few_classes_stand_for_nothing():
    """Of data that lie by class, and no others."""
    for name in ("transfer", "audit"):
        found = complete_attack(name, norm="Linf", eps=0.1, restarts=1, given={})
        then = found.model_copy(update={"spread_pool": True})
        assert found.key() != then.key() and "spread_pool" not in found.model_dump()
        assert AttackSpec.model_validate(then.model_dump(mode="json")) == then


@pytest.mark.parametrize(
    ("method", "marked"), [("integrated-gradients", True), ("smoothgrad", True), ("saliency", False)]
)
def test_sums_of_gradients_of_whole_passes_stand_for_nothing(method: str, marked: bool):
    """And those alone; a study that names no method has one of them."""
    entry = StudyAttack.model_validate({"name": "explain", "method": method, "eps": 0.1})
    (found,) = explanation_specs(entry, ("attacks", 0), lambda where, call, *args: call(*args))
    then = found.model_copy(update={"split_sums": False})
    assert (found.key() != then.key(), "split_sums" in found.model_dump()) == (marked, marked)
    assert sums_gradients(entry) == marked and AttackSpec.model_validate(found.model_dump(mode="json")) == found
    (usual,) = explanation_specs(
        bare := StudyAttack(name="explain", eps=(0.1,)), (), lambda _, call, *args: call(*args)
    )
    assert usual.split_sums and sums_gradients(bare)


MARKS: list[tuple[str, dict[str, list[int]]]] = [
    ("[{name: pgd, eps: 0.1}]", {}),
    ("[{name: transfer, eps: 0.1, surrogate: a}]", {}),
    ("[{name: explain, method: saliency, eps: 0.1}]", {}),
    ("[{name: pgd, eps: 0.1}, {name: transfer, eps: 0.1}]", {"spread_pool": [1]}),
    ("[{name: explain, method: [saliency, {name: smoothgrad, samples: 5}], eps: 0.1}]", {"split_sums": [0]}),
    ("[{name: pgd, eps: 0.1}, {name: audit, norm: Linf, eps: 0.1}]", {"spread_pool": [1], "surrogate_gradients": [1]}),
    ("[{name: pgd, eps: 0.1}]\naudit: full", {"spread_pool": [], "surrogate_gradients": []}),
]


@pytest.mark.parametrize(("attacks", "marks"), MARKS)
def test_a_study_with_marked_jobs_is_expanded_anew_and_no_other(tmp_path: Path, attacks: str, marks: dict[str, Any]):
    """A store that knew it whole would give it the jobs of then."""
    (tmp_path / "s.yaml").write_text(
        f"dataset: digits\nmodels: {{a: {{arch: lenet5, train: {{}}}}}}\nattacks: {attacks}\n"
    )
    study, origin = load_study(tmp_path / "s.yaml", {})
    found = resolve(study, origin, tmp_path, tmp_path)
    content = [KERNEL_VERSION, study.model_dump(mode="json"), found.data.sha256, [None, None]]
    told = [*content, *({name: places} for name, places in marks.items())]
    assert found.identity == hashlib.sha256(canonical(told).encode()).hexdigest()


class WithTarget(EvalSpec):
    """An evaluation as a later version may have it: with a field that is left out at its default."""

    target: int | None = None

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        usual = {"choose": "first", "target": None}
        return {name: value for name, value in dump(self).items() if (name, value) not in usual.items()}


class WithMomentum(AttackSpec):
    """An attack whose function has a later parameter, left out where it is 0."""

    @model_serializer(mode="wrap")
    def without_nothing(self, dump: Any) -> dict[str, Any]:
        later = ("surrogate", "whole_steps", "spread_pool", "surrogate_gradients", "split_sums")
        found = {name: value for name, value in dump(self).items() if name not in later or value}
        params = {name: value for name, value in found["params"].items() if (name, value) != ("momentum", 0.0)}
        return found | {"params": params}


class WithLimit(EvalSpec):
    """With a field on which no number depends."""

    not_content = EvalSpec.not_content | {"limit"}
    limit: int = 3


def test_a_new_field_left_out_at_its_default_keeps_old_keys():
    """As docs/contributing.md says how; at another value, or left in, it makes another job."""
    given: dict[str, Any] = {"model": GIVEN, "data": DATA, "attack": PGD}
    old = SPECS["eval"].key()
    assert WithTarget(**given).key() == old == WithLimit(**given, limit=5).key()
    assert WithTarget(**given, target=3).key() != old
    left_in: type[Spec] = type("LeftIn", (EvalSpec,), {"__annotations__": {"target": int | None}, "target": None})
    assert left_in(**given).key() != old
    attack = PGD.model_dump()
    assert WithMomentum.model_validate(attack | {"params": {"steps": 20, "momentum": 0.0}}).key() == PGD.key()
    assert WithMomentum.model_validate(attack | {"params": {"steps": 20, "momentum": 0.5}}).key() != PGD.key()
