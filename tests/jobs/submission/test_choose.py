"""Which split and which of its examples a study evaluates: rows say so, trainings are shared, old keys stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robustlib.datasets import load
from robustlib.datasets.choose import choose
from robustlib.datasets.source import Reading
from robustq.jobs.errors import RunError, SpecError
from robustq.jobs.results.compare import compare
from robustq.jobs.results.filters import Filters
from robustq.jobs.results.rows import result_rows
from robustq.jobs.running.inputs import load_data
from robustq.jobs.specs import DataRef, EvalSpec, TrainSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.expand_study import expand
from robustq.jobs.submission.study_sources import resolve_file
from robustq.jobs.submission.submit import submit
from robustq.jobs.verification.replay import replay
from tests.helpers.drain_queue import work_off, worked_off
from tests.robustlib.datasets.test_load import encode, write_parquet

SIDES, Y40 = ("test", "validation"), [k % 4 for k in range(40)]

STUDY: dict[str, Any] = {
    "name": "s",
    "models": {
        "a": {"arch": "lenet5", "train": {"epochs": 1, "examples": 300, "validation_examples": 50}},
        "r": {
            "arch": "convnet3",
            "dropout_at_inference": 0.3,
            "train": {"epochs": 1, "examples": 300, "validation_examples": 50},
        },
    },
    "attacks": [{"name": "pgd", "steps": 2, "eps": 0.1}],
    "examples": 230,
    "choose": "stratified",
    "images": 3,
    "draws": 3,
    "eot_draws": 2,
}


@pytest.mark.slow
def test_stratified_examples_come_out_the_same_in_shards(tmp_path: Path):
    whole = worked_off(tmp_path / "whole", STUDY)
    parted = worked_off(tmp_path / "parts", STUDY | {"shards": 3}, slots=2)
    y = load.load("digits", "test").y
    rows = choose(y, 230, "stratified")
    with whole.begin() as one, parted.begin() as other:
        left, right = result_rows(one), result_rows(other)
        assert [row["key"] for row in left] == [row["key"] for row in right] and len(left) == 2
        for a, b in zip(left, right, strict=True):
            found = example_outcomes.to_columns(examples_of(one, a["job_id"]))
            assert found["index"].tolist() == rows.tolist() and found["label"].tolist() == y[rows].tolist()
            assert examples_of(one, a["job_id"]).to_pylist() == examples_of(other, b["job_id"]).to_pylist()
    whole.engine.dispose()
    parted.engine.dispose()


def planned(folder: Path, **changes: Any):
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return expand(resolve_file(folder / "study.yaml", {}))


@pytest.fixture
def splits(tmp_path: Path) -> str:
    digits = load.load("digits", "train")
    for n, split in enumerate(("train", "validation", "test")):
        rows = range(n * 120, n * 120 + 120)
        encoded = [encode(digits.x[i]) for i in rows]
        write_parquet(tmp_path / "set" / f"{split}.parquet", encoded, digits.y[list(rows)])
    return f"parquet:{tmp_path / 'set'}"


def test_trainings_are_shared_whichever_split_is_evaluated(splits: str, tmp_path: Path):
    plans = [planned(tmp_path, dataset=splits, examples=20, split=split) for split in ("test", "validation")]
    trains, evals = (
        [[p.key for p in plan if isinstance(p.spec, kind)] for plan in plans] for kind in (TrainSpec, EvalSpec)
    )
    assert trains[0] == trains[1] and not set(evals[0]) & set(evals[1])
    assert [p.dataset for p in plans[1]] == [
        splits if isinstance(p.spec, TrainSpec) else f"{splits} (validation, stratified)" for p in plans[1]
    ]
    assert {p.spec.data.split for p in plans[1] if isinstance(p.spec, EvalSpec)} == {"validation"}


@pytest.mark.slow
def test_the_chosen_split_is_what_is_evaluated(splits: str, tmp_path: Path):
    study = STUDY | {"dataset": splits, "split": "validation", "examples": "all", "choose": "first"}
    study |= {"models": {"a": STUDY["models"]["a"]}}
    store = worked_off(tmp_path / "store", {name: study[name] for name in study if "draws" not in name})
    with store.begin() as db:
        (row,) = result_rows(db)
        found = example_outcomes.to_columns(examples_of(db, row["job_id"]))
    assert row["n"] == 120 and found["label"].tolist() == load.load(splits, "validation").y.tolist()
    assert not np.array_equal(found["label"], load.load(splits, "test").y)
    assert [row["outcome"] for row in replay(store, 1, filters=Filters(), job_ids=[row["job_id"]])] == ["equal"]
    (tmp_path / "set" / "validation.parquet").write_bytes((tmp_path / "set" / "train.parquet").read_bytes())
    load_data.cache_clear()
    with pytest.raises(RunError, match=r"cannot run again: dataset .* has changed since the job was submitted"):
        replay(store, 1, filters=Filters(), job_ids=[row["job_id"]])
    store.engine.dispose()


@pytest.mark.slow
def test_images_of_two_splits_are_not_paired_though_their_labels_agree(tmp_path: Path):
    digits = load.load("digits", "train")
    for n, split in enumerate(("train", "validation", "test")):
        write_parquet(tmp_path / "set" / f"{split}.parquet", [encode(x) for x in digits.x[n * 40 : n * 40 + 40]], Y40)
    model = {"arch": "lenet5", "train": {"epochs": 1, "validation_examples": 10}}
    study = {"name": "s", "dataset": f"parquet:{tmp_path / 'set'}", "models": {"a": model}}
    study |= {"attacks": [{"name": "clean"}, {"name": "fgsm", "eps": [0.1, 0.2]}]}
    store = worked_off(tmp_path / "store", study)
    submit(
        store.url,
        Study.model_validate(study | {"split": "validation"}),
        Origin("s", {}, {}),
        tmp_path,
        data_folder=tmp_path,
    )
    work_off(store)
    with store.begin() as db:
        rows = result_rows(db)
        jobs = {
            split: [row for row in rows if ("validation" in row["dataset"]) == (split != "test")] for split in SIDES
        }
        for mine, other in zip(jobs["test"], jobs["validation"], strict=True):
            with pytest.raises(SpecError, match="same examples, got one of test and one of validation"):
                compare(db, Filters(), [str(mine["job_id"]), str(other["job_id"])])
        both = [str(row["job_id"]) for row in jobs["validation"][:2]]
        assert [row["n"] for row in compare(db, Filters(), both)] == [40]
        assert "worst-case" in {row["attack"] for row in jobs["test"]}
    store.engine.dispose()


def test_a_reading_left_as_usual_leaves_keys_as_they_were():
    assert DataRef(place="digits", sha256="d" * 64).model_dump(mode="json") == {"place": "digits", "sha256": "d" * 64}
    asked = DataRef(place="digits", sha256="d" * 64, split="validation", reading=Reading(size=32))
    assert asked.key() != DataRef(place="digits", sha256="d" * 64).key()
    assert DataRef.model_validate(asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "digit"}, "label has no effect on dataset digits: expected one of parquet:PATH"),
        ({"crop": 4}, "crop has no effect on dataset digits"),
        ({"examples": "all"}, "choose: stratified has no effect with examples: all"),
        ({"split": "validation"}, "dataset digits has no 'validation' split, it has: train, test"),
        ({"split": "dev"}, "split: input should be 'train', 'test' or 'validation'"),
        ({"size": 0}, "size"),
        ({"classes": "all"}, "classes: input should be 'remap'"),
    ],
)
def test_what_has_no_effect_is_refused_with_its_line(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(SpecError) as error:
        planned(tmp_path, **changes)
    assert message in str(error.value) and str(error.value).startswith(f"{tmp_path}/study.yaml:")


def test_fewer_examples_than_asked_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    planned(tmp_path, examples=1000)
    assert capsys.readouterr().err == "dataset digits: examples 1000, but test holds 449: all are taken\n"
    planned(tmp_path, examples=449)
    assert capsys.readouterr().err == ""
