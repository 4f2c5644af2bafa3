"""Explanation jobs: numbers of the kernels called by hand, the same for any batch size, in shards, and resumed."""

import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sqlalchemy as sa
import torch
from scipy import stats

from robustlib.attacks import ATTACKS
from robustlib.datasets.lazy_images import LazyImages
from robustlib.datasets.load import fingerprint, load
from robustlib.datasets.source import AS_IT_IS
from robustlib.evaluation.explanation import attacked, attribution, explain, explained, predictions
from robustlib.evaluation.explanation_stability import stability_batches, with_twin
from robustlib.explanations.curves import deletion, insertion
from robustlib.explanations.measures import near_top_intersection, signed_spearman, spearman, ssim, top_intersection
from robustlib.explanations.sanity import random_order, relevance, with_random_weights
from robustlib.rng import Draws
from robustlib.settings import EXPLANATION_MEASURES
from robustq.jobs.commands.store_info import merge_text
from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.filters import Filters, make_filters
from robustq.jobs.results.rows import artifact_of, result_rows
from robustq.jobs.running.context import Context, Progress, Result
from robustq.jobs.running.explanations import arguments_of
from robustq.jobs.running.run import run
from robustq.jobs.running.warm_models import ready_model
from robustq.jobs.specs import AttackSpec, DataRef, EvalSpec, ModelSpec, ShardSpec, parse
from robustq.jobs.store import artifacts
from robustq.jobs.store.connection import Store, open_store
from robustq.jobs.store.explanations.measures import measures_of
from robustq.jobs.store.schema import check_result, example_blob, explanation, job, result
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission.submit import submit
from robustq.jobs.upkeep import merge, prune
from robustq.jobs.verification import bundle_format, replay
from robustq.jobs.verification.bundle import write_bundle
from robustq.jobs.verification.bundle_check import check_bundle
from robustq.jobs.verification.bundled_jobs import How
from tests.helpers.drain_queue import work_off, worked_off
from tests.helpers.explained import AGAINST, STUDY

FEW = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = worked_off(tmp_path_factory.mktemp("explained") / "s", STUDY)
    yield store
    store.engine.dispose()


def job_of(store: Store, model: str = "plain", method: str = "integrated-gradients") -> tuple[int, Any]:
    """Number and spec of a job, with its model in eval mode."""
    with store.begin() as db:
        filters = make_filters(None, {"model": model}, [f"method={method}"], ("model", "method"))
        number = explanation_rows(db, filters)[0]["job_id"]
        found = db.execute(sa.select(job.c.spec).where(job.c.id == number)).scalar_one()
    return number, EvalSpec.model_validate(found)


def model_of(store: Store, spec: EvalSpec) -> Any:
    with store.begin() as db:
        weights = artifact_of(
            db, db.execute(sa.select(job.c.id).where(job.c.key == spec.train)).scalar_one(), "weights"
        )
    return ready_model(spec, Context("cpu", store.artifacts, weights={str(spec.train): str(weights)}))[0].model


def test_rows_stand_side_by_side_and_not_among_accuracies(finished: Store):
    with finished.begin() as db:
        rows = explanation_rows(db, Filters("steady"))
        assert {row["attack"] for row in result_rows(db)} == {"fgsm"}
    assert len(rows) == 2 * 2 * len(AGAINST)
    assert [row["against"] for row in rows[:4]] == AGAINST
    assert {(row["model"], row["method"]) for row in rows} == {
        (model, method) for model in STUDY["models"] for method in ("integrated-gradients", "grad-cam")
    }
    kept = {(row["against"], row["kept"] == row["n"] == 130) for row in rows}
    assert ("explanation-attack", True) in kept and ("explanation-attack", False) not in kept


@pytest.mark.slow
@pytest.mark.parametrize("method", ["integrated-gradients", "grad-cam"])
def test_every_number_is_that_of_the_kernels_called_by_hand(finished: Store, method: str):
    number, spec = job_of(finished, method=method)
    model = model_of(finished, spec)
    data = load("digits", "test")
    x, options = torch.from_numpy(data.images[:64]).float() / 255, spec.attack.params["options"]
    few, draws = x[:FEW], Draws(0, torch.arange(FEW))
    with finished.begin() as db:
        stored = {name: values.reshape(-1, 4)[:FEW] for name, values in measures_of(db, number).items()}
    assert stored["against"][0].tolist() == AGAINST
    bare = with_random_weights(model, seed=0)
    unlearnt = explain(bare, x, model(x).argmax(1), method=method, **options).attribution[:FEW]
    with explained(model, x) as ready:
        target = predictions(ready, few)
        steps: dict[str, Any] = {"norm": "Linf", "eps": 0.1}
        images = {
            "clean": few,
            "noise": (few + 0.1 * draws.signs(tuple(few.shape[1:]), "explanations/noise/direction")).clamp(0, 1),
            "pgd": ATTACKS["pgd"](ready.oracle, few, target, draws=draws, steps=3, **steps),
            "explanation-attack": attacked(ready, method, few, target, draws, options, steps=4, looks=2, **steps),
        }
        shown = {name: predictions(ready, image) for name, image in images.items()}
        maps = {name: attribution(ready, method, images[name], shown[name], draws, options) for name in images}
        for place, name in enumerate(AGAINST):
            expected = {
                "index": torch.arange(FEW),
                "label": torch.from_numpy(data.y[:FEW]),
                "explained": target,
                "prediction": shown[name],
                "deletion": deletion(ready.oracle, images[name], shown[name], maps[name], steps=4),
                "insertion": insertion(ready.oracle, images[name], shown[name], maps[name], steps=4),
            }
            if name != "clean":
                expected |= {
                    "top_intersection": top_intersection(maps["clean"], maps[name]),
                    "near_top_intersection": near_top_intersection(maps["clean"], maps[name]),
                    "spearman": spearman(maps["clean"], maps[name]),
                    "ssim": ssim(maps["clean"], maps[name]),
                }
            else:
                order = random_order(few, draws)
                expected |= {
                    "random_weights": signed_spearman(maps["clean"], unlearnt).nan_to_num(0.0),
                    "random_gain": relevance(ready.oracle, few, target, order, steps=4),
                    "gain": relevance(ready.oracle, few, target, maps["clean"], steps=4),
                }
            for column, values in expected.items():
                assert np.array_equal(stored[column][:, place], values.numpy(), equal_nan=True), (name, column)


def test_means_and_intervals_are_those_of_the_images(finished: Store):
    number, _ = job_of(finished)
    with finished.begin() as db:
        columns = measures_of(db, number)
        rows = [row for row in explanation_rows(db) if row["job_id"] == number]
    for row in rows:
        mine = columns["against"] == row["against"]
        for name in EXPLANATION_MEASURES:
            values = columns[name][mine & ~np.isnan(columns[name])]
            cells: Any = row
            found = [cells[f"{name}{end}"] for end in ("", "_low", "_high")]
            if not len(values):
                assert row["against"] == "clean" and found == [None, None, None]
                continue
            low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            least = -1 if name in ("spearman", "ssim") else 0
            assert found == pytest.approx([values.mean(), max(low, least), min(high, 1)])
        assert row["kept"] == (columns["prediction"] == columns["explained"])[mine].sum()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["predicted", "true"])
def test_no_bit_depends_on_the_batch_size_or_the_order(finished: Store, target: str):
    _, spec = job_of(finished)
    model, data = model_of(finished, spec), load("digits", "test")
    given = arguments_of(spec) | {"target": target, "method": "smoothgrad", "options": {"samples": 3}}

    def found(index: torch.Tensor, batch_size: int) -> dict[str, np.ndarray]:
        own: Any = given | {"batch_size": batch_size}
        batches = list(
            stability_batches(
                model,
                LazyImages(data.images),
                torch.from_numpy(data.y),
                **own,
                index=index,
            )
        )
        return {name: np.concatenate([batch.columns[name] for batch in batches]) for name in batches[0].columns}

    index = torch.arange(5, 25)
    whole = found(index, 64)
    for other in (found(index, 1), found(index, 7)):
        assert all(np.array_equal(whole[name], other[name], equal_nan=whole[name].dtype.kind == "f") for name in whole)
    back = found(index.flip(0), 9)
    order = np.lexsort((np.tile(np.arange(4), 20), back["index"]))
    for name, values in whole.items():
        assert np.array_equal(values, back[name][order], equal_nan=values.dtype.kind == "f"), name
    wrong = whole["explained"] != whole["prediction"]
    clean = whole["against"] == "clean"
    if target == "true":  # what the model takes for another class is not explained
        assert (wrong & clean).any() and np.isnan(whole["deletion"][np.repeat((wrong & clean)[::4], 4)]).all()
    assert not np.isnan(whole["deletion"][np.repeat(~wrong[::4], 4)]).any()


@pytest.mark.slow
def test_shards_and_a_job_that_was_killed_come_to_the_same(finished: Store, tmp_path: Path):
    """The first job of the sharded study is begun by a driver that dies, and done again by another."""
    study = STUDY | {"shards": 2}
    store, _ = submit(
        str(tmp_path / "r.db"), Study.model_validate(study), Origin("s", {}, {}), tmp_path, data_folder=tmp_path
    )
    with store.begin() as db:
        for driver in ("dead", "one"):
            drivers.register(db, driver, "here", 1, 0.0, "0")
    work_off_trainings(store)
    with store.begin() as db:
        (begun,) = claims.claim(db, "dead", most=1, what=job.c.attack == "explain")
        assert transitions.start(db, begun, "dead", "here", 1, "")
    frames: Any = run(parse(begun.spec), Context("cpu", store.artifacts, weights=begun.weights))  # pyright: ignore[reportArgumentType]
    assert isinstance(next(frames), Progress)
    frames.close()
    with store.begin() as db:
        assert drivers.reclaim(db, ["dead"]) == 1
    work_off(store)
    with finished.begin() as one, store.begin() as other:
        left, right = explanation_rows(one), explanation_rows(other)
        times = {"seconds", "recorded_at", "job_id"}
        strip = [[{n: v for n, v in row.items() if n not in times} for row in rows] for rows in (left, right)]
        assert strip[0] == strip[1]
        for a, b in zip(left[::4], right[::4], strict=True):
            first, second = measures_of(one, a["job_id"]), measures_of(other, b["job_id"])
            assert all(np.array_equal(v, second[n], equal_nan=v.dtype.kind == "f") for n, v in first.items())
            assert checks_of(one, a["job_id"]) == checks_of(other, b["job_id"])
            kept = [artifact_of(db, row["job_id"], "maps") for db, row in ((one, a), (other, b))]
            assert kept[0] == kept[1] is not None
    store.engine.dispose()


def work_off_trainings(store: Store) -> None:
    """Until no training waits: evaluations stay in the queue."""
    for _ in range(2):
        with store.begin() as db:
            (claimed,) = claims.claim(db, "one", most=1, what=job.c.kind == "train")
            assert transitions.start(db, claimed, "one", "here", 1, "")
        *_, found = run(parse(claimed.spec), Context("cpu", store.artifacts))  # pyright: ignore[reportArgumentType]
        with store.begin() as db:
            assert transitions.finish(db, claimed, found.row, None, found.artifacts)  # pyright: ignore[reportAttributeAccessIssue]


def checks_of(db: sa.Connection, number: int) -> list[tuple[Any, ...]]:
    c = check_result.c
    query = sa.select(c.name, c.value, c.verdict, c.note).where(c.job_id == number).order_by(c.name)
    return [tuple(row) for row in db.execute(query)]


def test_kept_maps_are_those_of_the_first_images(finished: Store):
    number, spec = job_of(finished)
    with finished.begin() as db:
        sha256 = artifact_of(db, number, "maps")
    held = safetensors.torch.load(artifacts.get(finished.artifacts, str(sha256)))
    assert held["index"].tolist() == [0, 1, 2]
    assert set(held) == {"index", *(f"{what}/{name}" for what in ("image", "map") for name in AGAINST)}
    data = load("digits", "test")
    assert torch.equal(held["image/clean"], torch.from_numpy(data.images[:3]).float() / 255)
    model = model_of(finished, spec)
    x = torch.from_numpy(data.images[:64]).float() / 255
    assert torch.equal(held["map/clean"], explain(model, x, method="integrated-gradients", steps=4).attribution[:3])


@pytest.mark.slow
def test_a_replay_is_equal_to_the_bit_and_sees_a_change(finished: Store):
    number, _ = job_of(finished, "robust")
    (row,) = replay.replay(finished, 1, filters=Filters(), job_ids=[number])
    assert (row["outcome"], row["examples_that_differ"], row["old_robust_accuracy"]) == (replay.EQUAL, 0, None)
    with finished.begin() as db:
        columns = measures_of(db, number)
        done = replay.Result({"clean_accuracy": 0.0}, replay.measures.encode(columns))
        changed = columns | {"ssim": columns["ssim"] + 1e-9 * (columns["index"] == 7)}
        before = {"clean_accuracy": 0.0, "device": "cpu: x"}
        assert replay.judge_explanation(before, columns, done, same_machine=True) == (replay.EQUAL, 0)
        assert replay.judge_explanation(before, changed, done, same_machine=True) == (replay.DIFFERS, 1)
        assert replay.judge_explanation(before, changed, done, same_machine=False) == ("within", 1)
        lower = columns | {"ssim": columns["ssim"] - 0.1 - 0.01 * np.sin(columns["index"])}
        assert replay.judge_explanation(before, lower, done, same_machine=False) == ("changed", 130)


@pytest.mark.slow
def test_sums_of_whole_passes_may_move_within_their_interval(finished: Store):
    """A job of before its mark, on the same machine: nobody changed it."""
    number, spec = job_of(finished)
    then = spec.model_copy(update={"attack": spec.attack.model_copy(update={"split_sums": False})})
    mine, its = job.c.id == number, example_blob.c.job_id == number
    with finished.begin() as db:
        (data,) = db.execute(sa.select(example_blob.c.data).where(its)).scalars()
        columns = measures_of(db, number)
        rounded = columns | {"ssim": columns["ssim"] + np.float32(1e-6) * (columns["index"] == 7)}
        db.execute(sa.update(job).where(mine).values(spec=then.model_dump(mode="json")))
        db.execute(sa.update(example_blob).where(its).values(data=replay.measures.encode(rounded)))
    try:
        (row,) = replay.replay(finished, 1, filters=Filters(), job_ids=[number])
    finally:
        with finished.begin() as db:
            db.execute(sa.update(job).where(mine).values(spec=spec.model_dump(mode="json")))
            db.execute(sa.update(example_blob).where(its).values(data=data))
    assert (row["outcome"], row["examples_that_differ"], row["same_machine"]) == ("within", 1, True)
    assert row["reason"] == "stored when sums of gradients were of whole passes, which round otherwise"
    assert replay.count_wrong([row]) == 0


@pytest.mark.slow
def test_a_bundle_has_its_measures_and_runs_it_again(finished: Store, tmp_path: Path):
    write_bundle(finished, "steady", tmp_path / "b.zip", print)
    found = check_bundle(tmp_path / "b.zip", How(number=6))
    assert (found.wrong, found.evaluations) == (0, 6)
    assert {(row["attack"], row["outcome"]) for row in found.replayed} == {("fgsm", "equal"), ("explain", "equal")}
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        told = {name: archive.read(name) for name in archive.namelist()}
    (key, *_) = [name for name, content in told.items() if name.startswith("outcomes/") and b"ssim" in content]
    lines = told[key].decode().splitlines()
    place = lines[0].split(",").index('"random_weights"')
    cells = lines[1].split(",")
    told[key] = "\n".join([lines[0], ",".join([*cells[:place], "0.99", *cells[place + 1 :]]), *lines[2:]]).encode()
    manifest = json.loads(told.pop("manifest.json"))
    about = {name: manifest[name] for name in ("robustq", "kernel", "sweep", "states")}
    bundle_format.write(tmp_path / "forged.zip", about, told)
    (line,) = check_bundle(tmp_path / "forged.zip", How(number=0)).contradictions
    assert "its check random-weights is" in line and "explain Linf 0.1" in line


def test_merged_stores_keep_explanations_and_a_prune_takes_them(finished: Store, tmp_path: Path):
    with finished.begin() as db:
        drivers.stop(db, "one")
    target = open_store(str(tmp_path / "t.db"), create=True, write=True)
    assert merge.merge(target, finished).done == 8
    with target.begin() as db, finished.begin() as other:
        assert [row["ssim"] for row in explanation_rows(db)] == [row["ssim"] for row in explanation_rows(other)]
    again = merge.merge(target, finished)
    assert (again.same, again.differing) == (8, [])
    with target.begin() as db:
        db.execute(sa.update(result).where(result.c.clean_accuracy.is_not(None)).values(clean_accuracy=0.0))
    differing = merge.merge(target, finished)
    assert {found.attack for found in differing.differing} >= {"explain"}
    told = merge_text([{"store": "other", "dry_run": False} | asdict(differing)])
    lines = [line for line in told.splitlines() if "under explain" in line]
    assert lines and all("kept its explanations (" in line and "left its explanations (" in line for line in lines)
    prune.prune(target, ["steady"])
    with target.begin() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(explanation)).scalar() == 0
    target.engine.dispose()


@pytest.mark.slow
def test_images_beyond_a_shard_show_progress_and_share_a_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a network that has learnt nothing, of whose images few are explained: the first shard's are too few."""
    made: list[int] = []

    def counted_twin(*given: Any) -> Any:
        made.append(len(given))
        return with_twin(*given)

    monkeypatch.setattr("robustlib.evaluation.explanation_stability.with_twin", counted_twin)
    params = {
        "method": "saliency", "options": {}, "target": "true", "against": [{"name": "noise", "params": {}}],
        "share": 0.1, "radius": 1, "curve_steps": 2, "baseline": 0.0,
    }  # fmt: skip
    attack = AttackSpec(name="explain", norm="Linf", eps=0.1, params=params)
    data = DataRef(place="digits", sha256=fingerprint("digits", "test", AS_IT_IS))
    spec = ShardSpec(
        model=ModelSpec(arch="lenet5"),
        data=data,
        attack=attack,
        examples=200,
        images=10,
        first=0,
        last=8,
        batch_size=16,
        seed=0,
    )
    *steps, result = run(spec, Context("cpu", str(tmp_path)))
    told = [(one.done, one.total, one.note) for one in steps if isinstance(one, Progress)]
    assert told[0] == (8, 8, "examples") and told[-1] == (8, 8, "examples, 10 of 10 maps")
    assert len(made) == 2 and len(told) == len(steps) > 3
    assert isinstance(result, Result) and result.artifacts


@pytest.mark.slow
def test_shards_of_the_true_class_keep_as_many_maps_as_the_whole(tmp_path: Path):
    """Of a network that has learnt nothing: few of the first shard's images are its own class, and explained."""
    entry = {"name": "explain", "method": "saliency", "against": ["noise"], "target": "true", "eps": 0.1}
    train = {"epochs": 1, "examples": 60, "validation_examples": 20, "learning_rate": 1e-6}
    study = {
        "name": "true", "models": {"bare": {"arch": "lenet5", "train": train}}, "attacks": [entry | {"curve_steps": 2}],
        "examples": 300, "images": 20,
    }  # fmt: skip
    kept = {}
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        store = worked_off(folder, study | {"shards": shards})
        with store.begin() as db:
            number = explanation_rows(db)[0]["job_id"]
            kept[shards] = str(artifact_of(db, number, "maps"))
            columns = measures_of(db, number)
        held = safetensors.torch.load(artifacts.get(store.artifacts, kept[shards]))
        store.engine.dispose()
    right = columns["index"][(columns["against"] == "clean") & (columns["explained"] == columns["prediction"])]
    assert (right[:20] < 100).sum() < 20 <= len(right) and held["index"].tolist() == right[:20].tolist()
    assert kept[1] == kept[3]
