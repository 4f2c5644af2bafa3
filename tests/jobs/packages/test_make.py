"""The making of packages: the card's numbers are the store's, and what runs is judged by itself."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from sqlalchemy import insert, select, update

from robustlib.datasets import load
from robustlib.export.comparison import logits_of
from robustlib.inference.gradients import pull
from robustlib.models import build
from robustlib.packages.golden import read_golden
from robustlib.packages.manifest import INT8, ONNX
from robustlib.packages.onnx_session import OnnxSession
from robustq.jobs.errors import SpecError
from robustq.jobs.packages import attacked_images, card_text
from robustq.jobs.packages.card import Card
from robustq.jobs.packages.chosen_model import Chosen, model_by_job, model_by_options
from robustq.jobs.packages.judged_program import Judged, check_accuracy, judge
from robustq.jobs.packages.make import Made, golden_of, make_package
from robustq.jobs.packages.stored_numbers import jobs_of, read_stored
from robustq.jobs.packages.verify import verify
from robustq.jobs.results.rows import result_rows
from robustq.jobs.running.package_models import build_packaged
from robustq.jobs.specs import ModelSpec
from robustq.jobs.store.connection import Store
from robustq.jobs.store.example_outcomes import examples_of
from robustq.jobs.store.schema import job, result
from tests.helpers.packaged import ATTACKED, QUICK, TRAINED, packaged

OPTIONS: dict = {"weights": None, "normalize": None, "mean": None, "std": None, "dataset": "digits"}


def test_the_cards_numbers_are_the_stores(made: Made, trained: Store):
    with trained.begin() as db:
        rows = {row["job_id"]: row for row in result_rows(db)}
        columns = examples_of(db, ATTACKED).to_pydict()
    told = {one.job: one for one in made.card.evaluations}
    assert told.keys() == rows.keys() and [one.kind for one in told.values()] == [
        "attack", "attack", "certificate", "worst-case",
    ]  # fmt: skip
    for number, one in told.items():
        row = rows[number]
        stored = (row["robust_accuracy"], row["robust_accuracy_low"], row["robust_accuracy_high"], row["n"])
        assert (one.robust.accuracy, one.robust.low, one.robust.high, one.robust.n) == stored
        same = ("attack", "norm", "eps", "recipe", "seed", "verdict", "key", "device", "versions")
        assert all(getattr(one, name) == row[name] for name in same)
    right = np.array(columns["clean_correct"], bool)
    for label, one in enumerate(made.card.clean_by_class):
        mine = np.array(columns["label"]) == label
        assert (one.name, one.n) == (str(label), mine.sum()) and one.accuracy == pytest.approx(right[mine].mean())
    training = made.card.training
    assert training is not None and (training.objective, training.seed) == ("standard", 3)
    assert training.settings["epochs"] == 6 and 0.5 < training.validation["clean_accuracy"] <= 1
    assert made.card.evaluated and made.card.warnings == []


def test_its_files_are_the_network(made: Made, place: Path):
    """Weights, both programs and the golden logits, each beside the network built anew from the weights."""
    data = load.load("digits", "test")
    net = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))
    net.load_state_dict(safetensors.torch.load((place / "model.safetensors").read_bytes()))
    golden = read_golden((place / "golden.npz").read_bytes())
    x = torch.from_numpy(golden.images)
    assert np.array_equal(golden.images, data.x[golden.index]) and np.array_equal(golden.labels, data.y[golden.index])
    assert np.allclose(golden.logits[ONNX], logits_of(net, x), atol=1e-5) and len(x) == 64
    with torch.no_grad():
        program = torch.export.load(io.BytesIO((place / "model.pt2").read_bytes())).module()
        assert np.allclose(program(x.float() / 255).numpy(), golden.logits[ONNX], atol=1e-5)
    assert made.card.network.arch == "lenet5" and made.card.network.parameters == sum(
        p.numel() for p in net.parameters()
    )


def test_the_program_was_attacked_again(made: Made, trained: Store):
    (program,) = made.card.programs
    clean, transfer, square = program.rows
    with trained.begin() as db:
        columns = examples_of(db, ATTACKED).to_pydict()
    stands = 1 - np.mean(columns["success"])
    assert (transfer.job, transfer.norm, transfer.eps, transfer.program.n) == (ATTACKED, "Linf", 0.05, 40)
    assert transfer.program.accuracy == transfer.network_accuracy == pytest.approx(stands)
    assert clean.program.accuracy == pytest.approx(np.mean(columns["clean_correct"])) and clean.differing == []
    assert (square.queries, square.seed) == (
        30,
        3,
    ) and stands - 0.05 <= square.program.accuracy <= clean.program.accuracy
    assert 0 < program.largest_difference < 0.1 * (program.tolerance or 0) and transfer.note.startswith(
        "as the evaluation"
    )
    assert [one.batch for one in program.latency] == [1, 32] and program.runtime.startswith("onnxruntime ")


def test_of_what_was_computed_anew_the_latest_is_told(trained: Store):
    """As of an audit by today's marks: the number of before is none that the card should have."""
    with trained.begin() as db:
        chosen, before = model_by_job(db, ATTACKED), db.begin_nested()
        unnamed = replace(chosen, evaluation=None)
        known = jobs_of(db, unnamed)
        rows = {
            table: dict(db.execute(select(table).where(place == ATTACKED)).mappings().one())
            for table, place in ((job, job.c.id), (result, result.c.job_id))
        }
        spec = rows[job]["spec"]
        marked = spec | {"attack": spec["attack"] | {"surrogate_gradients": True}, "batch_size": 7}
        for number, state in ((901, "done"), (902, "queued")):  # of the last nothing is known yet
            mine = {"id": number, "key": f"{number}" * 16, "state": state, "spec": marked}
            db.execute(insert(job).values(rows[job] | mine))
        db.execute(insert(result).values(rows[result] | {"job_id": 901}))
        assert jobs_of(db, unnamed) == [*(id_ for id_ in known if id_ != ATTACKED), 901]
        assert jobs_of(db, chosen) == [*known, 901]
        before.rollback()
        assert jobs_of(db, chosen) == known and ATTACKED in known


def test_images_that_were_not_kept_are_made_anew(trained: Store):
    """The same images to the bit, by running the stored evaluation again."""
    with trained.begin() as db:
        chosen = model_by_job(db, ATTACKED)
        stored = read_stored(db, chosen, [str(i) for i in range(10)])
    assert stored.primary_spec is not None and stored.primary is not None and stored.primary.job == ATTACKED
    kept = attacked_images.images_of(trained, chosen, stored, 25, lambda line: None)
    lost = replace(stored, primary_spec=stored.primary_spec.model_copy(update={"images": 0}))
    told: list[str] = []
    anew = attacked_images.images_of(trained, chosen, lost, 25, told.append)
    assert np.array_equal(kept.x_adv, anew.x_adv) and np.array_equal(kept.index, anew.index) and len(kept.x_adv) == 25
    assert kept.index.max() > 30 and np.array_equal(kept.rows, kept.index)  # all over the 40, which are the first
    assert told == [f"the attacked images of job {ATTACKED} are made anew: the evaluation runs again"]
    assert anew.note == "made anew by running the evaluation again"


@pytest.mark.parametrize(
    ("ordered", "images", "anew"),
    [(True, 100, False), (True, 50, True), (True, 10, True), (False, 50, False), (False, 10, True)],
)
def test_a_sorted_evaluation_is_attacked_again_in_all_its_classes(
    trained: Store, monkeypatch: pytest.MonkeyPatch, ordered: bool, images: int, anew: bool
):
    """As of a folder of images, whose first half is half of the classes; of one in no order its kept half will do."""
    with trained.begin() as db:
        chosen = model_by_job(db, ATTACKED)
        stored = read_stored(db, chosen, [str(i) for i in range(10)])
    assert stored.primary_spec is not None
    label = np.repeat(np.arange(10), 10) if ordered else np.random.default_rng(0).permutation(100) % 10
    spec = stored.primary_spec.model_copy(update={"images": images})
    stored = replace(stored, primary_spec=spec, outcomes={"label": label, "index": 3 * np.arange(100)})
    monkeypatch.setattr(attacked_images, "kept_images", lambda store, number, rows: np.zeros((len(rows), 1)))
    monkeypatch.setattr(attacked_images, "run_again", lambda *of: (np.ones((len(of[3]), 1)), 0))
    found = attacked_images.images_of(trained, chosen, stored, 20, lambda line: None)
    assert len(found.rows) == 20 and bool(found.x_adv[0, 0]) == anew and np.array_equal(found.index, 3 * found.rows)
    assert np.array_equal(found.label, label[found.rows]) and (anew or found.rows.max() < images)
    counts = np.bincount(found.label, minlength=10)
    assert counts.min() >= 1 if not ordered and not anew else counts.tolist() == [2] * 10


def test_golden_images_of_a_sorted_split_are_of_all_classes(about: Judged):
    order = np.argsort(about.dataset.y, kind="stable")
    pixels: Any = about.dataset.x[order]
    golden = golden_of(about.network, replace(about.dataset, images=pixels, y=about.dataset.y[order]))
    assert len(golden.images) == 64 and np.bincount(golden.labels, minlength=10).min() >= 4
    assert np.array_equal(golden.images, pixels[golden.index])


def test_the_card_fits_its_schema(made: Made, place: Path):
    card = json.loads((place / "card.json").read_text())
    jsonschema.validate(card, json.loads((place / "card.schema.json").read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(card | {"evaluated": "perhaps"}, json.loads((place / "card.schema.json").read_text()))
    assert Card.model_validate(card) == made.card


def test_the_page_has_metadata_that_the_hub_reads(made: Made, place: Path):
    """Its form: https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    _, front, page = (place / "card.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["library_name"], told["pipeline_tag"]) == ("onnx", "image-classification")
    ((model,), (results,)) = told["model-index"], told["model-index"][0]["results"]
    assert model["name"] == "net" and results["task"]["type"] == "image-classification"
    assert (results["dataset"]["type"], results["dataset"]["revision"]) == ("digits", made.card.data.sha256)
    for metric in results["metrics"]:
        assert metric.keys() == {"type", "name", "value", "args"} and 0 <= metric["value"] <= 1
    robust = next(m for m in results["metrics"] if m["args"].get("kind") == "attack")
    stored = made.card.evaluations[0]
    assert robust["value"] == stored.robust.accuracy and robust["args"]["n"] == 40
    assert {key: robust["args"][key] for key in ("attack", "norm", "eps")} == {
        "attack": "pgd",
        "norm": "Linf",
        "eps": 0.05,
    }
    assert {m["args"]["kind"] for m in results["metrics"] if m["args"].get("of") == ONNX} == {
        "clean",
        "transfer",
        "square",
    }
    assert "## What the numbers do not say" in page and "## Clean accuracy by class" in page and "/tmp" not in page


def test_a_failed_check_is_packaged_only_anyway(trained: Store, tmp_path: Path):
    with trained.begin() as db:
        before = db.execute(result.select().where(result.c.job_id == ATTACKED)).mappings().one()["verdict"]
    try:
        with trained.begin() as db:
            db.execute(update(result).where(result.c.job_id == ATTACKED).values(verdict="fail"))
        with pytest.raises(SpecError, match=rf"job {ATTACKED} \(pgd, Linf, eps 0.05\) failed .*: --anyway packages it"):
            packaged(trained, ATTACKED, tmp_path / "p")
        assert not (tmp_path / "p").exists()
        made = packaged(trained, ATTACKED, tmp_path / "p", replace(QUICK, anyway=True))
    finally:
        with trained.begin() as db:
            db.execute(update(result).where(result.c.job_id == ATTACKED).values(verdict=before))
    page = (tmp_path / "p" / "card.md").read_text().split("---\n", 2)[2]
    first = page.strip().splitlines()[2]
    assert first.startswith(f"> **Not trusted: job {ATTACKED} (pgd, Linf, eps 0.05) failed ")
    assert "not trusted (" in page and made.card.warnings[0] in first
    assert verify(tmp_path / "p", made.digest).failed == []
    assert all("pgd" not in m["name"] for m in card_text.metrics_of(made.card))


@pytest.mark.slow
def test_a_model_that_no_store_knows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(
        "from torch import nn, manual_seed\n"
        "def build():\n    manual_seed(0)\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12))\n"
    )
    chosen = model_by_options(OPTIONS | {"model": "m.py:build"})
    made = make_package(None, chosen, tmp_path / "out" / "p.zip", QUICK, lambda line: None)
    assert not made.card.evaluated and made.card.warnings == [
        "Not evaluated: no evaluation of this model is stored. Nothing here says what it does under attack."
    ]
    assert made.card.classes == [*(str(k) for k in range(10)), "class 10", "class 11"]
    code = made.card.network.code
    assert made.card.network.arch is None and code is not None and code.name == "m.py:build"
    assert [row.what for row in made.card.programs[0].rows] == ["clean"] and made.card.clean is None
    assert "model-index" not in card_text.front_matter(made.card) and verify(made.place, made.digest).failed == []


@pytest.fixture(scope="module")
def about(trained: Store, made: Made) -> Judged:
    with trained.begin() as db:
        chosen = model_by_job(db, TRAINED)
        stored = read_stored(db, chosen, made.card.classes)
    data = load.load("digits", "test")
    net = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))
    net.load_state_dict(safetensors.torch.load((made.place / "model.safetensors").read_bytes()))
    attacked = attacked_images.images_of(trained, chosen, stored, 40, lambda line: None)
    return Judged(net, data, data.x[:64], stored, attacked, 30, 0.0, "cpu")


def test_a_program_that_is_not_the_network_is_refused(about: Judged, place: Path):
    other = build(arch="lenet5", in_channels=1, num_classes=10, image_size=(8, 8))
    weights = safetensors.torch.load((place / "model.safetensors").read_bytes())
    weights["normalize.mean"] += 0.01
    other.load_state_dict(weights)
    program = (place / "model.onnx").read_bytes()
    assert judge(about, program, ONNX, lambda line: None).rows[1].what == "transfer"
    with pytest.raises(SpecError, match=r"model.onnx is not the network: a logit differs by .* at most .*no package"):
        judge(replace(about, network=other), program, ONNX, lambda line: None)


def test_a_network_that_was_not_evaluated_is_refused(about: Judged, place: Path):
    """As of a user's code that draws its weights anew: the stored numbers are another network's."""
    assert about.stored.outcomes is not None
    other = about.stored.outcomes | {"clean_prediction": (about.stored.outcomes["clean_prediction"] + 1) % 10}
    with pytest.raises(SpecError, match="is not the one that was evaluated: its class differs for 40 of 40 images"):
        judge(
            replace(about, stored=replace(about.stored, outcomes=other)),
            (place / "model.onnx").read_bytes(),
            ONNX,
            print,
        )


def test_a_program_that_square_breaks_beyond_its_numbers(about: Judged, place: Path):
    """As if no stored attack had found anything: then what Square finds is more than 2 % of the images."""
    program = (place / "model.onnx").read_bytes()
    blind = [one | {"success": np.zeros_like(one["success"])} for one in about.stored.others]
    weak = replace(about, stored=replace(about.stored, others=blind))
    with pytest.raises(SpecError, match=r"less than its numbers: .* Square breaks more of it than all stored attacks"):
        judge(weak, program, ONNX, lambda line: None)


def test_eight_bits_are_judged_by_their_accuracy(trained: Store, tmp_path: Path, about: Judged, place: Path):
    made = packaged(trained, TRAINED, tmp_path / "p", replace(QUICK, int8=True))
    _, eight = made.card.programs
    assert (eight.file, eight.precision, eight.tolerance) == ("model.int8.onnx", "int8", None)
    assert [row.what for row in eight.rows] == ["clean", "transfer", "square"]
    assert eight.largest_difference > made.card.programs[0].largest_difference * 10
    assert abs(eight.rows[0].program.accuracy - (eight.rows[0].network_accuracy or 0)) <= 0.05
    assert verify(tmp_path / "p", made.digest).failed == []
    data, x = load.load("digits", "test"), torch.from_numpy(about.golden[:8]).float() / 255
    spec = ModelSpec(options={"program": "int8"})
    logits, _, slopes = pull(build_packaged(spec, data, tmp_path / "p", None), x, lambda z: z[:, :1])
    _, _, own = pull(about.network, x, lambda z: z[:, :1])
    eighth = OnnxSession((tmp_path / "p" / INT8).read_bytes(), INT8)(x.numpy())
    assert np.array_equal(logits.numpy(), eighth) and torch.allclose(slopes, own) and slopes.abs().max() > 0
    with pytest.raises(ValueError, match=r"the package net has no model.int8.onnx: `robustq package --int8` makes one"):
        build_packaged(spec, data, place, None)
    worse = eight.rows[0].model_copy(update={"network_accuracy": eight.rows[0].program.accuracy + 0.1})
    with pytest.raises(SpecError, match="on clean images it is less accurate than the network; leave out --int8"):
        check_accuracy(eight.file, worse)


def test_the_same_network_is_found_by_any_of_its_jobs(trained: Store):
    with trained.begin() as db:
        found: list[Chosen] = [model_by_job(db, number) for number in (1, 2, 3, 4, 5, 6)]
    assert len({one.subject for one in found}) == 1 and len({one.weights for one in found}) == 1
    evaluations = [one.evaluation for one in found]
    assert evaluations[:5] == [None, 2, 3, 4, None] and evaluations[5] in (2, 3)  # the fifth explains
    with trained.begin() as db, pytest.raises(SpecError, match="job 99: there is none"):
        model_by_job(db, 99)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("lambda x: x.flatten(1)[:, :10]", "only answers, or is a program already: expected a network"),
        ("Noisy()", "changes its answers from pass to pass: no program gives the same numbers"),
        ("nn.Flatten(0)", "expected logits of shape"),
        ("nn.Sequential(nn.Flatten(), nn.Linear(3, 10))", "the model fails on float32 images of shape"),
        ("Branching()", "the model cannot be exported by torch.export: "),
    ],
)
def test_what_no_program_can_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, line: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Noisy(nn.Module):\n    def forward(self, x):\n        x = x + torch.rand_like(x)\n"
        "        return x.flatten(1)[:, :10]\n"
        "class Branching(nn.Module):\n    def forward(self, x):\n        x = x.flatten(1)[:, :10]\n"
        "        return x if float(x.sum()) > 0 else -x\n"
        f"def build():\n    return {code}\n"
    )
    chosen = model_by_options(OPTIONS | {"model": "m.py:build"})
    with pytest.raises(SpecError, match=line):
        make_package(None, chosen, tmp_path / "p", QUICK, lambda text: None)
    assert not (tmp_path / "p").exists()


def test_a_place_that_is_taken_is_left_alone(made: Made, trained: Store, tmp_path: Path):
    with pytest.raises(SpecError, match=r"--out: the folder .* is not empty: choose another place"):
        packaged(trained, TRAINED, made.place)
    with pytest.raises(SpecError, match=r"card.json is a file, expected a folder, or a file that ends with .zip"):
        packaged(trained, TRAINED, made.place / "card.json")
    (tmp_path / "p.zip").mkdir()
    with pytest.raises(SpecError, match=r"p.zip is a folder, expected a file that ends with .zip"):
        packaged(trained, TRAINED, tmp_path / "p.zip")


def test_numbers_on_the_page_are_as_a_study_has_them(made: Made):
    """Radii as n/255, parameters without brackets, four digits of a normalisation, and notes by the table's words."""
    training = made.card.training
    assert training is not None
    settings = training.settings | {"attack": {"eps": 8 / 255, "steps": 3}, "validation_eps": 8 / 255}
    network = made.card.network.model_copy(
        update={"normalisation": {"mean": [0.4912503957748413] * 2, "std": [0.2, 1]}}
    )
    other = training.model_copy(update={"settings": settings})
    text = card_text.page(made.card.model_copy(update={"training": other, "network": network}))
    for line in ("- attack: eps 8/255, steps 3", "- validation_eps: 8/255"):
        assert f"\n{line}\n" in text
    assert "Its first layer subtracts 0.4913, 0.4913 and divides by 0.2, 1, by channel." in text
    assert "Square: the network's accuracy is what all stored attacks" in text and "network_accuracy" not in text
