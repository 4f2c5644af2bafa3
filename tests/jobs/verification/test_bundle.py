"""Bundles: what is in them, and that it is all that their numbers rest on."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustlib.hashing import code_hash, file_hash
from robustlib.packages.manifest import package_hash
from robustq.cli import main
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.chosen_model import model_by_options
from robustq.jobs.packages.make import make_package
from robustq.jobs.results.columns import RESULT_COLUMNS
from robustq.jobs.specs import AttackSpec, CodeRef, DataRef, EvalSpec, ModelSpec
from robustq.jobs.store import example_outcomes
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import job, result
from robustq.jobs.verification.bundle import without_folders, write_bundle
from robustq.jobs.verification.bundle_check import check_bundle
from robustq.jobs.verification.bundled_jobs import SHOWN, How, Measured, from_lines, outcomes_csv, read_outcomes
from tests.helpers.bundles import altered, members
from tests.helpers.drain_queue import worked_off
from tests.helpers.fake_results import outcome
from tests.helpers.onnx_programs import linear_program
from tests.helpers.packaged import QUICK, zipped


def test_a_bundle_has_all_that_its_numbers_rest_on(bundled, whole):
    found = members(whole)
    jobs = from_lines(found["jobs.jsonl"])
    with bundled.begin() as db:
        keys = db.execute(sa.select(job.c.key).where(job.c.kind != "shard")).scalars().all()
    assert {one.key for one in jobs} == set(keys)
    assert sorted(one.kind for one in jobs) == ["eval"] * 4 + ["train"] + ["worst"] * 2
    kinds = sorted(name.partition("/")[0] for name in found)
    assert kinds == [
        "artifacts",
        "code",
        "code",
        "files",
        "jobs.jsonl",
        "manifest.json",
        *["outcomes"] * 6,
        "results.csv",
        "study.json",
    ]
    assert not any(
        str(bundled.artifacts).encode().rpartition(b"/store")[0] in content
        for name, content in found.items()
        if not name.startswith("code/")
    )
    manifest = json.loads(found["manifest.json"])
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items() if name != "manifest.json"
    }


def test_keys_are_those_of_specs_without_folders():
    code = CodeRef(place="/home/me/m.py", factory="build", sha256="0" * 64)
    spec = EvalSpec(
        model=ModelSpec(code=code, options={"vocabulary": "/home/me/words.txt"}),
        data=DataRef(place="parquet:/home/me/d.parquet", sha256="0" * 64),
        attack=AttackSpec(name="fgsm", params={"labels": "/home/me/l.txt"}),
    )
    cut = EvalSpec.model_validate(without_folders(spec.model_dump(mode="json")))
    assert cut.model.code is not None
    assert (cut.model.code.place, cut.data.place) == ("m.py", "parquet:d.parquet")
    assert cut.key() == spec.key()


def test_every_column_of_a_result_is_in_a_bundle(whole):
    assert set(Measured.model_fields) == {column.name for column in result.c} - {"job_id", "fence"}
    head = members(whole)["results.csv"].decode().splitlines()[0].split(",")
    assert head == [name for name in RESULT_COLUMNS if name not in ("sweep", "why", "job_id")]


def test_the_same_sweep_gives_the_same_bytes(bundled, whole, tmp_path):
    first = write_bundle(bundled, "s", tmp_path / "again.zip", tell=pytest.fail)
    assert (tmp_path / "again.zip").read_bytes() == whole.read_bytes()
    assert first == hashlib.sha256(members(whole)["manifest.json"]).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["again.zip"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with an ONNX file, and one package as a folder and as an archive."""
    folder = tmp_path_factory.mktemp("programs")
    random = np.random.default_rng(0)
    (folder / "lin.onnx").write_bytes(linear_program(random.normal(size=(64, 10)), np.zeros(10), (1, 8, 8)))
    (folder / "m.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    options = {"weights": None, "normalize": None, "mean": None, "std": None, "dataset": "digits"}
    chosen = model_by_options(options | {"model": f"{folder}/m.py:build"})
    made = make_package(None, chosen, folder / "net", QUICK, lambda line: None)
    zipped(made.place, folder / "p.zip")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["net", "p.zip"])
def test_programs_and_packages_are_in_it_and_run(programs, tmp_path, monkeypatch, packed):
    folder = programs
    models = {name: {"file": f"{folder}/{name}"} for name in ("lin.onnx", packed)}
    study = {"name": "s", "models": models, "attacks": [{"name": "square", "queries": 9, "eps": 0.05}], "examples": 9}
    store = worked_off(tmp_path / "store", study)
    write_bundle(store, "s", tmp_path / "s.zip", tell=pytest.fail)
    found = members(tmp_path / "s.zip")
    places = [name for name in found if name.startswith("files/")]
    hashes = {name.split("/")[2]: name.split("/")[1] for name in places}
    assert hashes["lin.onnx"] == file_hash(folder / "lin.onnx")
    assert hashes[packed.removesuffix(".zip") + ".zip"] == package_hash(folder / "net")
    away = folder.rename(folder.with_name("away"))
    monkeypatch.chdir(tmp_path)
    try:
        told = check_bundle(tmp_path / "s.zip", How(number=9))
        assert (told.wrong, told.replayed) == (0, []) and "--trust-code" in min(told.left_out)
        told = check_bundle(tmp_path / "s.zip", How(number=9, trust_code=True))
    finally:
        away.rename(folder)
    assert [row["outcome"] for row in told.replayed] == ["equal"] * told.evaluations and told.wrong == 0


@pytest.mark.slow
def test_code_that_lends_a_package_its_gradient_is_in_it_and_runs(programs, tmp_path, monkeypatch):
    """Without it nobody could run an attack that climbs it again."""
    folder = programs
    models = {"p": {"file": f"{folder}/net", "options": {"gradients": f"{folder}/m.py:build"}}}
    study = {"name": "s", "models": models, "attacks": [{"name": "pgd", "steps": 2, "eps": 0.05}], "examples": 9}
    store = worked_off(tmp_path / "store", study)
    write_bundle(store, "s", tmp_path / "s.zip", tell=pytest.fail)
    assert f"code/{code_hash(folder / 'm.py')}/m.py" in members(tmp_path / "s.zip")
    away = folder.rename(folder.with_name("away"))
    monkeypatch.chdir(tmp_path)
    try:
        told = check_bundle(tmp_path / "s.zip", How(number=9, trust_code=True))
        without = altered(tmp_path / "s.zip", tmp_path / "less.zip", lambda found: found.pop(code_in(found)))
        less = check_bundle(without, How(number=9, trust_code=True))
    finally:
        away.rename(folder)
    assert [row["outcome"] for row in told.replayed] == ["equal"] * told.evaluations and told.wrong == 0
    assert [row["outcome"] for row in less.replayed] == [] and "the bundle lacks code/" in less.contradictions[0]


def code_in(found: dict[str, bytes]) -> str:
    return next(name for name in found if name.startswith("code/"))


def test_outcomes_come_back_to_the_bit():
    table = example_outcomes.to_table(outcome(3, n=200) | {"queries": np.arange(200) - 1})
    assert read_outcomes(outcomes_csv(table)).equals(table)
    with pytest.raises(ValueError):
        read_outcomes(b"index,label\n1,2\n")


def test_a_file_that_changed_since_makes_no_bundle(bundled, tmp_path):
    weights = Path(bundled.artifacts).parents[1] / "w.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before + b" ")
    try:
        with pytest.raises(SpecError, match=r"would lack what its numbers rest on: .*w\.safetensors has changed"):
            write_bundle(bundled, "s", tmp_path / "s.zip", tell=pytest.fail)
    finally:
        weights.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_is_told(sqlite_store, tmp_path):
    with pytest.raises(SpecError, match="the sweep small has no finished job"):
        write_bundle(sqlite_store, "small", tmp_path / "s.zip", tell=pytest.fail)


def test_the_command_says_what_it_wrote(bundled, tmp_path):
    path = tmp_path / "s.zip"
    done = CliRunner().invoke(main, ["--store", bundled.url, "bundle", "s", str(path)])
    assert done.exit_code == 0 and "fingerprint" in done.stdout, done.output
    told = json.loads(CliRunner().invoke(main, ["check", str(path), "--replay", "0", "--json"]).stdout)
    assert (told["wrong"], told["sweep"], told["states"]["done"]) == (0, "s", 7)
    with open_store(bundled.url).begin() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(result)).scalar() == 7


def test_folders_of_a_machine_are_left_out():
    told = {
        "/home/me/m.py:build": "m.py:build", "parquet:/data/me/cifar (train)": "parquet:cifar (train)",
        "/w/ck.pth:state": "ck.pth:state", "~/w/x.pt": "x.pt", "digits": "digits", "8/255": "8/255", "m.py:build": "m.py:build",
        "pgd(eps=8/255)": "pgd(eps=8/255)", "http://me:pw@host:80/a/b?token=x": "http://host:80/a/b",
    }  # fmt: skip
    assert without_folders(list(told)) == list(told.values())


def test_a_bundle_has_every_column_of_results():
    assert set(Measured.model_fields) == {column.name for column in result.c} - {"job_id", "fence"}
    assert {name for name in RESULT_COLUMNS if name in Measured.model_fields} <= set(SHOWN)
