"""Bundles: what is in them, that a changed one is named, that a hostile one writes and runs nothing."""

import hashlib
import json
import stat
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
import torch
from click.testing import CliRunner

from robustlib.hashing import code_hash, file_hash
from robustlib.metrics import summarise
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
from robustq.jobs.verification import bundle_format
from robustq.jobs.verification.bundle import without_folders, write_bundle
from robustq.jobs.verification.bundle_check import check_bundle
from robustq.jobs.verification.bundle_format import Bundle, Refused
from robustq.jobs.verification.bundled_jobs import (
    SHOWN,
    How,
    Measured,
    from_lines,
    outcomes_csv,
    read_outcomes,
    rows_csv,
    to_lines,
)
from tests.helpers.drain_queue import worked_off
from tests.helpers.fake_results import outcome
from tests.helpers.onnx_programs import linear_program
from tests.helpers.packaged import QUICK, zipped

TRAINED = {"arch": "lenet5", "train": {"epochs": 1, "examples": 64, "validation_examples": 20}}
STUDY = {
    "name": "s",
    "models": {"a": TRAINED, "own": {"file": "m.py:build", "weights": "w.safetensors"}},
    "attacks": [{"name": "fgsm", "eps": 0.05}, {"name": "pgd", "steps": 2, "eps": 0.05}],
    "examples": 20,
    "images": 2,
}
NONE = How(number=0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As jobs run and are replayed: last bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store whose study ran, with a model of the user's: two files, which leave a mark when they are run."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bundle") / "home"
    folder.mkdir()
    (folder / "helper.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    (folder / "m.py").write_text(
        f"from pathlib import Path\nfrom helper import net\nPath({str(folder / 'mark')!r}).touch()\ndef build(): return net()\n"
    )
    random = torch.Generator().manual_seed(0)
    save_file({"1.weight": torch.randn(10, 64, generator=random), "1.bias": torch.zeros(10)}, folder / "w.safetensors")
    study = json.loads(json.dumps(STUDY))
    study["models"]["own"] |= {"file": f"{folder}/m.py:build", "weights": f"{folder}/w.safetensors"}
    return worked_off(folder / "store", study)


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zip"
    write_bundle(finished, "s", path, tell=pytest.fail)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def altered(path: Path, target: Path, change, *, seal: bool = True) -> Path:
    """A bundle whose members were changed by `change`. seal: with a manifest that fits them, as a forger makes it."""
    found = members(path)
    manifest = json.loads(found.pop("manifest.json"))
    change(found)
    if seal:
        about = {name: manifest[name] for name in ("robustq", "kernel", "sweep", "states")}
        bundle_format.write(target, about, found)
        return target
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in {**found, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr(name, content)
    return target


def of_jobs(change):
    """A change of members that changes the records of jobs, one by one."""

    def changed(found: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in found["jobs.jsonl"].splitlines()]
        for line in lines:
            change(line)
        found["jobs.jsonl"] = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()

    return changed


def test_a_bundle_has_all_that_its_numbers_rest_on(finished, whole):
    found = members(whole)
    jobs = from_lines(found["jobs.jsonl"])
    with finished.begin() as db:
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
        str(finished.artifacts).encode().rpartition(b"/store")[0] in content
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


def test_the_same_sweep_gives_the_same_bytes(finished, whole, tmp_path):
    first = write_bundle(finished, "s", tmp_path / "again.zip", tell=pytest.fail)
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


def test_a_whole_bundle_holds_and_no_code_of_it_runs(finished, whole):
    mark = Path(finished.artifacts).parents[1] / "mark"
    mark.unlink(missing_ok=True)
    found = check_bundle(whole, How(number=4))
    assert (found.wrong, found.evaluations, found.tampered, found.contradictions) == (0, 4, [], [])
    assert [(row["model"], row["outcome"]) for row in found.replayed] == [("a", "equal")] * 2
    assert list(found.left_out.values()) == [2] and "--trust-code" in next(iter(found.left_out))
    assert not mark.exists()


@pytest.mark.slow
def test_code_that_is_trusted_runs_from_the_bundle(finished, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Path(finished.artifacts).parents[1] / "m.py"
    away = source.rename(source.with_name("away.py"))
    try:
        found = check_bundle(whole, How(number=4, trust_code=True))
    finally:
        away.rename(source)
    assert (
        sorted((row["model"], row["outcome"]) for row in found.replayed)
        == [("a", "equal")] * 2 + [("own", "equal")] * 2
    )
    assert found.left_out == {}


@pytest.mark.parametrize(
    "prefix", ["outcomes/", "artifacts/", "files/", "code/", "jobs.jsonl", "results.csv", "study.json"]
)
def test_a_file_that_was_changed_is_named(whole, tmp_path, prefix):
    name = next(name for name in members(whole) if name.startswith(prefix))

    def change(found):
        found[name] = found[name][:-1] + bytes([found[name][-1] ^ 1])

    path = altered(whole, tmp_path / "t.zip", change, seal=False)
    done = CliRunner().invoke(main, ["check", str(path), "--replay", "0"])
    assert (done.exit_code, f"changed: {name}" in done.output) == (1, True), done.output
    assert "1 thing is not as it should be: see above" in done.output


def test_files_that_were_added_or_taken_are_named(whole, tmp_path):
    gone = next(name for name in members(whole) if name.startswith("outcomes/"))

    def change(found):
        del found[gone]
        found["code/" + "0" * 64 + "/more.py"] = b""

    found = check_bundle(altered(whole, tmp_path / "t.zip", change, seal=False), NONE)
    assert sorted(found.tampered) == [("code/" + "0" * 64 + "/more.py", "added"), (gone, "missing")]


def better(line):
    if line["kind"] == "eval":
        line["result"]["robust_accuracy"] = 0.99


def shown(**columns):
    return lambda line: line["kind"] == "eval" and line.update(columns)


def unseen(line):
    if line["kind"] == "eval":
        line["outcomes"] = False
        line["result"]["robust_accuracy"] = 0.99


def kinder(line):
    for one in line["checks"] if line["kind"] == "eval" else ():
        one.update(value=0.95, threshold=0.85, verdict="pass") if one["name"] == "chance" else None


def unbound(line):
    if line["kind"] == "eval":
        line["needs"] = []
    if line["kind"] == "train":
        line["artifacts"] = {}


def trusted(line):
    if line["kind"] == "eval":
        line["checks"] = [
            {
                "name": "broken_by_a_simpler_attack",
                "value": 1.0,
                "threshold": 0.5,
                "verdict": "fail",
                "note": "",
                "examples": [],
            }
        ]


def weaker(line):
    if line["kind"] == "eval":
        line["spec"]["attack"]["eps"] = line["eps"] = 0.01


def another(line):
    if line["kind"] == "worst":
        line["kind"] = "train"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, told",
    [
        (better, "robust_accuracy is 0.99, its outcomes come to"),
        (weaker, "is not that of its spec"),
        (lambda line: line["needs"].append("0" * 64), "it rests on a job 000000000000, which is not in the bundle"),
        (lambda line: line["result"].update(verdict="pass"), "is not that of its checks"),
        (shown(eps=0.3), "its eps is 0.3, its spec has 0.05"),
        (shown(attack="autoattack"), "its attack is 'autoattack', its spec has"),
        (shown(recipe="pgd(steps=1000)"), "its recipe is 'pgd(steps=1000)', its spec has"),
        (shown(arch="resnet18"), "its arch is 'resnet18', its spec has"),
        (shown(defence="trades"), "its defence is 'trades', its spec has"),
        (shown(dataset="cifar10"), "its data set is 'cifar10', its spec has 'digits'"),
        (shown(seed=7), "its seed is 7, its spec has 0"),
        (unseen, "it has no outcomes that its numbers follow from"),
        (kinder, "its check chance is 'pass' with a value of 0.95"),
        (unbound, "(train), seed 0: it has no weights"),
        (lambda line: line["kind"] == "worst" and line["result"].update(verdict="fail"), "is not that of its checks and evaluations"),
        (another, "jobs.jsonl cannot be read: line"),
        (lambda line: line.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256="0" * 64), "its weights 000000000000 are not in the bundle"),
    ],
    ids=[
        "number", "radius", "dependency", "verdict", "eps", "attack", "recipe", "arch", "defence", "dataset", "seed",
        "outcomes", "check", "training", "worst", "kind", "entry", "weights",
    ],
)  # fmt: skip
def test_numbers_under_new_hashes_contradict_the_rest(whole, tmp_path, change, told):
    found = check_bundle(altered(whole, tmp_path / "t.zip", of_jobs(change)), How(number=3))
    assert any(told in line for line in found.contradictions), found.contradictions
    assert found.tampered == [] and found.replayed == [] and found.wrong


def without_the_broken(table):
    return table.filter(~table.column("success").to_numpy())


def some_twice(table):
    return pa.concat_tables([table.slice(0, 10), table.slice(0, 10)]).combine_chunks()


@pytest.mark.parametrize(
    "change, told",
    [
        (without_the_broken, "its outcomes are of other examples than"),
        (some_twice, "an example is in its outcomes twice"),
    ],
)
def test_chosen_examples_contradict_the_rest(whole, tmp_path, change, told):
    jobs = from_lines(members(whole)["jobs.jsonl"])
    one = next(one for one in jobs if one.kind == "eval" and one.result.robust_accuracy)

    def changed(found):
        table = change(read_outcomes(found[f"outcomes/{one.key}.csv"]))
        found[f"outcomes/{one.key}.csv"] = outcomes_csv(table)
        row = one.result.model_copy(update=summarise(example_outcomes.to_columns(table)))
        alike = [job if job.key != one.key else job.model_copy(update={"result": row}) for job in jobs]
        found |= {"jobs.jsonl": to_lines(alike), "results.csv": rows_csv(alike)}

    found = check_bundle(altered(whole, tmp_path / "t.zip", changed), NONE)
    assert any(told in line for line in found.contradictions), found.contradictions


def test_an_example_without_an_index_is_no_outcome(whole):
    name = next(name for name in members(whole) if name.startswith("outcomes/"))
    first = members(whole)[name].splitlines()[0]
    with pytest.raises(ValueError, match="an example has no index"):
        read_outcomes(first + b"\n" + b"," * first.count(b",") + b"\n")


def test_a_better_worst_case_contradicts_its_evaluations(whole, tmp_path):
    jobs = from_lines(members(whole)["jobs.jsonl"])
    worst = next(one for one in jobs if one.kind == "worst" and one.model == "own")

    def change(found):
        table = read_outcomes(found[f"outcomes/{worst.key}.csv"])
        columns = example_outcomes.to_columns(table)
        columns["distance"] = columns["distance"] * np.float32(0.5)
        found[f"outcomes/{worst.key}.csv"] = outcomes_csv(example_outcomes.to_table(columns))

    told = check_bundle(altered(whole, tmp_path / "t.zip", change), NONE).contradictions
    assert any("its outcomes are not the worst of its evaluations" in line for line in told), told


@pytest.mark.slow
def test_other_weights_under_new_hashes_do_not_replay(whole, tmp_path):
    """All files fit one another, and the outcomes are not those of the weights."""
    from safetensors.torch import load, save

    def change(found):
        (name,) = [name for name in found if name.startswith("artifacts/")]
        new = save({key: value.flip(0) if value.dim() > 1 else value for key, value in load(found.pop(name)).items()})
        sha256 = hashlib.sha256(new).hexdigest()
        found[f"artifacts/{sha256}"] = new
        of_jobs(lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256=sha256))(found)

    found = check_bundle(altered(whole, tmp_path / "t.zip", change), How(number=2))
    assert (found.tampered, found.contradictions) == ([], [])
    assert {row["outcome"] for row in found.replayed} == {"differs"} and found.wrong == 2


def test_weights_that_do_not_fit_are_no_excuse(whole, tmp_path):
    def change(found):
        (name,) = [name for name in found if name.startswith("artifacts/")]
        del found[name]
        sha256 = hashlib.sha256(b"none").hexdigest()
        found[f"artifacts/{sha256}"] = b"none"
        of_jobs(lambda line: line["artifacts"] and line["artifacts"]["weights"].update(sha256=sha256))(found)

    found = check_bundle(altered(whole, tmp_path / "t.zip", change), How(number=1))
    (line,) = found.contradictions
    assert "it does not run again" in line and found.wrong == 1


def test_data_that_are_elsewhere_are_asked_for(whole):
    found = check_bundle(whole, How(number=2, dataset="parquet:/nowhere"))
    assert (found.replayed, found.wrong) == ([], 0)
    assert any("/nowhere" in why for why in found.left_out), found.left_out


@pytest.mark.parametrize(
    "place, told", [("folder:/etc", "{here}/etc"), ("folder:/", "has no name"), ("tar:../..", "has no name")]
)
def test_a_bundle_does_not_say_what_is_read_here(whole, tmp_path, monkeypatch, place, told):
    monkeypatch.chdir(tmp_path)

    def change(line):
        line["dataset"] = place
        if "data" in line["spec"]:
            line["spec"]["data"]["place"] = place

    def changed(found):
        of_jobs(change)(found)
        found["results.csv"] = rows_csv(from_lines(found["jobs.jsonl"]))

    found = check_bundle(altered(whole, tmp_path / "t.zip", changed), How(number=1, trust_code=True))
    assert (found.replayed, found.wrong, sum(found.left_out.values())) == ([], 0, 4)
    assert all(told.format(here=tmp_path) in why for why in found.left_out), found.left_out


def hostile(
    target: Path, name: str, content: bytes = b"x", *, mode: int = stat.S_IFREG | 0o644, twice: bool = False
) -> Path:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system, info.compress_type = mode << 16, 3, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr(info, content)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr(info, content)
    return target


@pytest.mark.parametrize(
    "name, how, told",
    [
        ("../evil.py", {}, "leads out of its folder"),
        ("/etc/cron.d/evil", {}, "leads out of its folder"),
        ("code/../../evil.py", {}, "leads out of its folder"),
        ("code\\..\\evil.py", {}, "leads out of its folder"),
        ("C:/evil.py", {}, "leads out of its folder"),
        ("evil.sh", {}, "belongs to no bundle"),
        ("study.json", {"mode": stat.S_IFLNK | 0o777}, "is a link or no file"),
        ("study.json", {"mode": stat.S_IFIFO | 0o644}, "is a link or no file"),
        ("study.json", {"twice": True}, "it has two members 'study.json'"),
    ],
)
def test_a_hostile_archive_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, name, how, told):
    path = hostile(tmp_path / "h.zip", name, **how)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["check", str(path)])
    assert (done.exit_code, done.stdout) == (2, "") and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert [found.name for found in tmp_path.rglob("*")] == ["h.zip"]


def test_more_than_is_allowed_is_refused_unread(tmp_path):
    path = hostile(tmp_path / "bomb.zip", "jobs.jsonl", b"0" * (3 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(Refused, match="unpacks to 3 MB, expected at most 2: --most-mb allows more"):
        Bundle(path, most_bytes=2 << 20)


def test_what_is_no_bundle_is_told_in_a_line(tmp_path):
    (tmp_path / "text").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("study.json", "{}")
    with zipfile.ZipFile(tmp_path / "newer.zip", "w") as archive:
        archive.writestr("manifest.json", '{"format": 2}')
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        archive.writestr("manifest.json", "[" * 100_000)
    for name, told in {
        "text": "is no bundle: File is not a zip file",
        "absent": "No such file",
        "none.zip": "it has no manifest.json",
        "newer.zip": "it has format 2, this robustq reads 1: update robustq",
        "deep.zip": "its manifest.json cannot be read",
    }.items():
        with pytest.raises(Refused, match=told):
            Bundle(tmp_path / name)


def test_another_bundle_than_the_author_meant_is_refused(whole):
    found = Bundle(whole)
    found.close()
    assert check_bundle(whole, NONE, fingerprint=found.fingerprint.upper()).wrong == 0
    with pytest.raises(Refused, match="is another bundle"):
        check_bundle(whole, NONE, fingerprint="0" * 64)


def test_a_file_that_changed_since_makes_no_bundle(finished, tmp_path):
    weights = Path(finished.artifacts).parents[1] / "w.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before + b" ")
    try:
        with pytest.raises(SpecError, match=r"would lack what its numbers rest on: .*w\.safetensors has changed"):
            write_bundle(finished, "s", tmp_path / "s.zip", tell=pytest.fail)
    finally:
        weights.write_bytes(before)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finished_is_told(sqlite_store, tmp_path):
    with pytest.raises(SpecError, match="the sweep small has no finished job"):
        write_bundle(sqlite_store, "small", tmp_path / "s.zip", tell=pytest.fail)


def test_the_command_says_what_it_wrote(finished, tmp_path):
    path = tmp_path / "s.zip"
    done = CliRunner().invoke(main, ["--store", finished.url, "bundle", "s", str(path)])
    assert done.exit_code == 0 and "fingerprint" in done.stdout, done.output
    told = json.loads(CliRunner().invoke(main, ["check", str(path), "--replay", "0", "--json"]).stdout)
    assert (told["wrong"], told["sweep"], told["states"]["done"]) == (0, "s", 7)
    with open_store(finished.url).begin() as db:
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
