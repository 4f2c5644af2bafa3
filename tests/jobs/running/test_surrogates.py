"""Transfer in studies: the surrogate is part of the key, its training comes first, and the numbers are what they should
be, whole or in shards.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from PIL import Image
from safetensors.torch import save_file

from robustlib.datasets import load
from robustlib.inference.throughput import Rates
from robustlib.models.lenet5 import LeNet5
from robustlib.settings import TrainSettings
from robustq.jobs.errors import SpecError
from robustq.jobs.results.filters import make_filters
from robustq.jobs.results.rows import result_rows, with_details
from robustq.jobs.running.audit import run_audit
from robustq.jobs.running.context import Context
from robustq.jobs.running.inputs import load_data
from robustq.jobs.running.surrogates import learn, pool
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec, SurrogateSpec, TrainSpec, parse
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, job_dep
from robustq.jobs.study.study import Study, load_study
from robustq.jobs.submission import cost, dry_run, study_sources
from robustq.jobs.submission.expand_study import expand, resolve
from robustq.jobs.submission.plan import Planned
from robustq.jobs.verification import replay
from tests.helpers.drain_queue import worked_off
from tests.helpers.steady_calibration import fix_rates

pytestmark = pytest.mark.slow  # its stores have trained networks

LEARNT = 400  # images that surrogates learn from here
DATA = DataRef(place="digits", sha256="d" * 64)
TRAIN = {"epochs": 2, "learning_rate": 0.05, "validation_examples": 50, "validation_steps": 1}
SLOWER = TRAIN | {"optimizer": "adam", "learning_rate": 0.003, "epochs": 5}
STUDY: dict[str, Any] = {
    "name": "s",
    "models": {"a": {"arch": "lenet5", "train": SLOWER}, "b": {"arch": "convnet3", "train": TRAIN}},
    "attacks": [
        {"name": "pgd", "steps": 10, "loss": "margin", "stop_at_success": False, "eps": 0.1},
        {"name": "transfer", "surrogate": "b", "steps": 10, "eps": [0.05, 0.1]},
        {"name": "transfer", "steps": 10, "eps": 0.1},
        {"name": "pgd", "norm": "L2", "steps": 10, "loss": "margin", "stop_at_success": False, "eps": 0.6},
        {"name": "transfer", "surrogate": "b", "norm": "L2", "steps": 10, "eps": 0.6},
    ],
    "examples": 150,
    "batch_size": 64,
}
TEXT = """\
name: s
models:
  a: {arch: lenet5, train: {epochs: 1}}
  b: {arch: convnet3, train: {epochs: 1}}
  drop: {arch: convnet3, dropout_at_inference: 0.5, train: {epochs: 1}}
  jpeg: {arch: lenet5, train: {epochs: 1}, defence: {name: jpeg}}
attacks:
  - {name: transfer, surrogate: b, steps: 10, eps: 0.1}
  - name: transfer
    eps: 0.1
    surrogate: b
seeds: [0, 1]
examples: 20
"""


@pytest.fixture(scope="module", autouse=True)
def few_to_learn_from() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustq.jobs.running.surrogates.MOST", LEARNT)
        yield


def plan(folder: Path, text: str = TEXT) -> list[Planned]:
    path = folder / "study.yaml"
    path.write_text(text)
    study, origin = load_study(path, {})
    return expand(resolve(study, origin, folder, folder))


def evals(jobs: list[Planned]) -> list[tuple[Planned, EvalSpec]]:
    return [(planned, planned.spec) for planned in jobs if isinstance(planned.spec, EvalSpec)]


def test_an_evaluation_waits_for_its_surrogates_training_of_the_same_seed(tmp_path: Path):
    jobs = plan(tmp_path, TEXT.replace("a: {arch", "z: {arch"))
    place = {planned.key: i for i, planned in enumerate(jobs)}
    trained = {p.key: (p.model, p.seed) for p in jobs if isinstance(p.spec, TrainSpec)}
    assert sorted(set(trained.values())) == [(m, s) for m in ("b", "drop", "z") for s in (0, 1)]  # jpeg is z inside
    found = evals(jobs)
    assert len(found) == 4 * 2 * 2
    for planned, spec in found:
        assert spec.attack.surrogate is not None
        assert trained[str(spec.attack.surrogate.train)] == ("b", planned.seed)
        assert set(planned.needs) == {spec.train, spec.attack.surrogate.train}
        assert all(place[need] < place[planned.key] for need in planned.needs)
        assert parse(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec
    # By its recipe a surrogate is told from others, but not by its seed: rows of several seeds belong together.
    assert len({spec.attack.recipe for _, spec in found}) == 2
    assert all(" from convnet3 standard " in spec.attack.recipe for _, spec in found)


def test_the_surrogates_weights_decide_the_key_its_name_does_not(tmp_path: Path):
    def key(**surrogate) -> str:
        given = SurrogateSpec(**{"model": ModelSpec(arch="lenet5"), "train": "t" * 64} | surrogate)
        attack = AttackSpec(name="transfer", norm="Linf", eps=0.1, surrogate=given)
        return EvalSpec(model=ModelSpec(arch="convnet3"), data=DATA, attack=attack).key()

    assert len({key(), key(train="u" * 64), key(model=ModelSpec(arch="convnet3"))}) == 3
    assert key(settings=TrainSettings(epochs=2)) != key()
    given = TEXT.replace("b: {arch: convnet3, train: {epochs: 1}}", "b: {arch: lenet5, weights: w.safetensors}")
    renamed = given.replace("  b: {", "  other: {").replace("surrogate: b", "surrogate: other")
    found = []
    for seed, text in ((0, given), (0, renamed), (1, given)):
        torch.manual_seed(seed)
        save_file(LeNet5(in_channels=1, image_size=(8, 8)).state_dict(), tmp_path / "w.safetensors")
        found.append([planned.key for planned, _ in evals(plan(tmp_path, text)) if planned.model == "a"])
    assert found[0] == found[1] and not set(found[0]) & set(found[2])


def test_what_has_no_surrogate_is_stored_as_before():
    attack = AttackSpec(name="transfer", norm="Linf", eps=0.1, params={"steps": 5})
    assert "surrogate" not in attack.model_dump() and attack.surrogate is None
    assert attack.recipe == "transfer(steps=5) from a network that learnt its answers"
    entry = {"name": "s", "models": {"a": {"arch": "lenet5", "train": {}}}, "attacks": [{"name": "pgd", "steps": 3}]}
    assert Study.model_validate(entry).model_dump()["attacks"][0].keys() == {"name", "norm", "eps", "restarts", "steps"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("surrogate: b\n", "surrogate: c\n", "11: transfer: there is no model 'c' to be its surrogate, expected one of: a, b, drop, jpeg"),
        ("surrogate: b, ", "surrogate: c, ", "8: transfer: there is no model 'c' to be its surrogate, expected one of: a, b, drop, jpeg"),
        ("surrogate: b, ", "surrogate: 3, ", "8: transfer: there is no model '3' to be its surrogate, expected one of: a, b, drop, jpeg"),
        ("{name: transfer, surrogate: b", "{name: pgd, surrogate: b", "8: pgd takes no surrogate, transfer does"),
        ("surrogate: b\n", "surrogate: drop\n", "11: the surrogate changes its answers from pass to pass: expected one that does not"),
        ("surrogate: b\n", "surrogate: jpeg\n", "11: the surrogate has no gradient to make images by: expected a network that has one"),
        ("steps: 10", "stepz: 10", "8: transfer has no parameter 'stepz', it has: loss, queries, step_size, steps: did you mean 'steps'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, message: str):
    assert old in TEXT
    with pytest.raises(SpecError) as caught:
        plan(tmp_path, TEXT.replace(old, new, 1))
    assert str(caught.value) == f"{tmp_path}/study.yaml:{message}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    """The study run whole, and in shards."""
    folder = tmp_path_factory.mktemp("transfer")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = worked_off(folder / "whole", STUDY)
        learn.cache_clear()
        return whole, worked_off(folder / "parts", STUDY | {"shards": 2, "batch_size": 40})
    finally:
        torch.set_num_threads(before)


def rows_of(store: Store) -> list[dict[str, Any]]:
    with store.begin() as db:
        rows = with_details(db, result_rows(db))
        return [row | {"examples": example_outcomes.to_columns(examples_of(db, row["job_id"]))} for row in rows]


def one(rows: list[dict[str, Any]], model: str, attack: str, eps: float, word: str = "") -> dict[str, Any]:
    (found,) = [r for r in rows if (r["model"], r["attack"], r["eps"]) == (model, attack, eps) and word in r["recipe"]]
    return found


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6)])
def test_from_itself_it_is_white_box_and_from_others_no_more(finished, norm: str, eps: float):
    rows = rows_of(finished[0])
    itself, white = one(rows, "b", "transfer", eps, "convnet3"), one(rows, "b", "pgd", eps)
    for name, values in itself["examples"].items():
        if name not in ("broken_by", "queries", "radius_queries"):
            np.testing.assert_array_equal(values, white["examples"][name], err_msg=name)
    assert itself["surrogate"]["agreement"] == 1 and 0 < itself["robust_accuracy"] < itself["clean_accuracy"] - 0.2
    carried, white = one(rows, "a", "transfer", eps, "convnet3"), one(rows, "a", "pgd", eps)
    assert carried["norm"] == norm and 0.5 < carried["surrogate"]["agreement"] < 1
    assert white["robust_accuracy"] <= carried["robust_accuracy"] <= carried["clean_accuracy"]
    worst = one(rows, "a", "worst-case", eps)
    assert worst["robust_accuracy"] <= white["robust_accuracy"]


def test_a_network_that_learnt_the_answers_is_a_surrogate_too(finished):
    rows = rows_of(finished[0])
    for model in "ab":
        row = one(rows, model, "transfer", 0.1, "learnt")
        assert row["surrogate"] | {"seconds": 0, "agreement": 0} == {
            "learnt_from": "the training split", "queries": LEARNT, "seconds": 0, "agreement": 0,
        }  # fmt: skip
        assert row["surrogate"]["agreement"] > 0.7
        assert one(rows, model, "pgd", 0.1)["robust_accuracy"] <= row["robust_accuracy"] < row["clean_accuracy"]
        standing = round(150 * row["clean_accuracy"])
        # Ten gradients of the surrogate for each image that stood at first.
        assert row["gradients"] == 10 * standing and row["forwards"] >= 11 * standing
        assert (row["examples"]["queries"] == np.where(row["examples"]["broken_by"] == "clean", -1, 1)).all()


def test_shards_come_to_the_whole(finished):
    whole, parts = map(rows_of, finished)
    assert [row["key"] for row in whole] == [row["key"] for row in parts] and len(whole) == 2 * (6 + 2)
    for a, b in zip(whole, parts, strict=True):
        assert (a["robust_accuracy"], a["verdict"]) == (b["robust_accuracy"], b["verdict"])
        for name, values in a["examples"].items():
            np.testing.assert_array_equal(values, b["examples"][name], err_msg=name)
        if a["surrogate"]:
            assert b["surrogate"]["agreement"] == pytest.approx(a["surrogate"]["agreement"])
            assert b["surrogate"]["queries"] == a["surrogate"]["queries"]
    with finished[1].begin() as db:
        shards = sa.select(job_dep.c.job_id, sa.func.count()).join(job, job.c.id == job_dep.c.job_id)
        needs = db.execute(
            shards.where((job.c.kind == "shard") & (job.c.attack == "transfer")).group_by(job_dep.c.job_id)
        )
        # Each shard of the model needs both trainings, of the surrogate itself one, of a learnt one that of the model.
        assert sorted(number for _, number in needs) == [1] * 10 + [2] * 6


def test_a_stored_transfer_comes_out_again(finished):
    learn.cache_clear()
    store = open_store(finished[0].url)
    rows = replay.replay(store, 20, filters=make_filters(None, {"attack": "transfer"}), threads=2)
    assert len(rows) == 8 and {row["outcome"] for row in rows} == {"equal"}


def test_the_estimate_counts_the_surrogates_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = TEXT.replace("    surrogate: b\n", "    steps: 10\n").replace("seeds: [0, 1]\n", "")
    path = tmp_path / "study.yaml"
    path.write_text(text)
    speeds = {"lenet5": Rates(forwards=1000.0, gradients=500.0), "convnet3": Rates(forwards=100.0, gradients=50.0)}
    fix_rates(monkeypatch, lambda spec: speeds[spec.arch or ""])
    found = json.loads(dry_run.dry_run(f"sqlite:///{tmp_path / 'none.db'}", path, {}, as_json=True))
    named, learnt = (row for row in found["jobs"] if (row["job"], row["model"]) == ("eval", "a"))
    # Of 20 images three verdicts and a query on LeNet-5, ten gradients on the ConvNet.
    assert (named["forwards"], named["gradients"]) == (20 * 14, 20 * 10)
    assert named["seconds"] == round(80 / 1000 + 200 / 50, 1)
    # Twelve epochs of the images it learns from besides, each three passes and two gradients.
    assert (learnt["forwards"], learnt["gradients"]) == (20 * 14 + 12 * LEARNT * 3, 20 * 10 + 12 * LEARNT * 2)
    weights = {arch: cost.pass_cost(ModelSpec(arch=arch), evals(plan(tmp_path, text))[0][1].data) for arch in speeds}
    costs = [planned.cost for planned, _ in evals(expand(study_sources.resolve_file(path, {}))) if planned.model == "a"]
    learning = 12 * LEARNT * (3 + 2 * 2)
    assert costs[0] == pytest.approx(80 * weights["lenet5"] + 200 * 3 * weights["convnet3"])
    assert costs[1] == pytest.approx(costs[0] + learning * weights["convnet3"])


@pytest.mark.parametrize(("count", "examples_", "words", "first"), [(300, 150, "not attacked", 150), (300, "all", "the attacked images", 0), (160, 100, "the attacked images", 0)])  # fmt: skip
def test_without_a_training_split_it_learns_from_what_is_not_attacked(tmp_path, count, examples_, words, first):
    for i in range(count):
        folder = tmp_path / "photos" / f"{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i % 251, np.uint8)).save(folder / f"{i:04}.png")
    place = f"folder:{tmp_path / 'photos'}"
    ref = DataRef(place=place, sha256=load.fingerprint(place))
    with pytest.raises((ValueError, FileNotFoundError)):
        load_data(ref, "train")
    images, said = pool(ref, examples_)
    assert words in said
    assert torch.equal(images, torch.from_numpy(load_data(ref, "test").x)[first:])


def test_an_estimate_decodes_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of large pictures 2,000 take minutes, for each transfer of a study."""
    place = by_class(tmp_path)
    data = DataRef(place=place, sha256=load.fingerprint(place))
    spec = EvalSpec(
        model=ModelSpec(arch="lenet5"),
        data=data,
        attack=AttackSpec(name="transfer", norm="Linf", eps=0.1, params={"steps": 3, "queries": 1}),
        examples=20,
    )
    expected = cost.surrogate_work(spec, data)
    monkeypatch.setattr("robustq.jobs.running.surrogates.LazyImages", None)
    assert cost.surrogate_work(spec, data) == expected
    monkeypatch.setattr("robustq.jobs.running.surrogates.MOST", 40)
    assert cost.surrogate_work(spec, data) != expected


def by_class(folder: Path) -> str:
    """A data set of folders: 4 classes of 50 images to train on, each of its own grey, and 10 of each to evaluate."""
    for split, many in (("train", 50), ("test", 10)):
        for label in range(4):
            place = folder / "photos" / split / str(label)
            place.mkdir(parents=True)
            for i in range(many):
                Image.fromarray(np.full((8, 8), 60 * label + i, np.uint8)).save(place / f"{i:04}.png")
    return f"folder:{folder / 'photos'}"


LEARNS = """\
name: s
models:
  a: {arch: lenet5, train: {epochs: 1, validation_examples: 10}}
attacks:
  - {name: transfer, steps: 3, eps: 0.1}
  - {name: transfer, steps: 3, eps: 0.1, surrogate: a}
  - {name: pgd, steps: 3, eps: 0.1}
audit: full
examples: 20
"""


def test_of_data_by_class_a_surrogate_learns_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first 40 images are of the first class; such jobs, and no others, have other keys than before."""
    monkeypatch.setattr("robustq.jobs.running.surrogates.MOST", 40)
    monkeypatch.setattr("robustq.jobs.running.audit.MOST", 40)
    found = evals(plan(tmp_path, LEARNS + f"dataset: {by_class(tmp_path)}\n"))
    marked = {(spec.attack.name, spec.attack.surrogate is None): spec.attack.spread_pool for _, spec in found}
    assert marked == {
        ("transfer", True): True, ("audit", True): True, ("transfer", False): False, ("pgd", True): False,
    }  # fmt: skip
    assert not any(spec.attack.spread_pool for _, spec in evals(plan(tmp_path, LEARNS)))  # the digits are shuffled
    (spec,) = [spec for _, spec in found if spec.attack.name == "audit"]
    greys = {60 * label + i for label in range(4) for i in range(0, 50, 5)}  # ten of each class, evenly
    images, words = pool(spec.data, spec.examples, all_over=True)
    assert {int(image.max()) for image in images} == greys and len(images) == 40 and words == "the training split"
    assert {int(image.max()) for image in pool(spec.data, spec.examples)[0]} == set(range(40))
    given: list[torch.Tensor] = []

    def audited(*_: Any, **about: Any) -> Iterator[None]:
        given.append(about["pool"])
        yield from ()

    monkeypatch.setattr("robustq.jobs.running.audit.audit", audited)
    for pooled, wanted in ((True, greys), (False, set(range(40)))):
        one = spec.model_copy(update={"attack": spec.attack.model_copy(update={"spread_pool": pooled})})
        ready: Any = SimpleNamespace(model=None)
        assert list(run_audit(one, Context("cpu", ""), ready)) == []
        assert {round(255 * image.max().item()) for image in given.pop()} == wanted
