"""Packages and ONNX files are models like any other: the same numbers, the same key wherever they lie."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from robustlib.datasets import load
from robustlib.inference.gradients import pull
from robustq import cli
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.chosen_model import model_by_options
from robustq.jobs.packages.make import Made, make_package
from robustq.jobs.packages.verify import verify
from robustq.jobs.results.rows import result_rows
from robustq.jobs.running.inputs import build_network, find_code
from robustq.jobs.specs import ModelSpec
from robustq.jobs.store.connection import Store
from robustq.jobs.study.study import Origin, Study
from robustq.jobs.submission import cost
from robustq.jobs.submission.expand_study import expand, resolve
from tests.helpers.drain_queue import worked_off
from tests.helpers.onnx_programs import linear_program
from tests.helpers.packaged import QUICK, STUDY, altered, packaged, zipped
from tests.helpers.parquet_samples import Y, write

PGD, SQUARE = STUDY["attacks"][0], {"name": "square", "eps": 0.05, "queries": 20}


def study(model: Any, *attacks: dict[str, Any], **how: Any) -> dict[str, Any]:
    return {"name": "s", "dataset": "digits", "models": {"m": {"file": str(model)} | how}, "attacks": list(attacks),
            "examples": 40, "seeds": [3]}  # fmt: skip


def resolved(model: Any, *attacks: dict[str, Any], **how: Any) -> Any:
    given = Study.model_validate(study(model, *attacks, **how))
    return resolve(given, Origin("s", {}, {}), Path(), Path())


def test_a_package_is_attacked_like_its_network(made: Made, trained: Store, tmp_path: Path):
    """Its program answers and its network lends the gradient: the stored number comes out."""
    store = worked_off(tmp_path / "s", study(zipped(made.place, tmp_path / "p.zip"), PGD, SQUARE))
    with store.begin() as db:
        rows = {row["attack"]: row for row in result_rows(db)}
    with trained.begin() as db:
        before = next(row for row in result_rows(db) if row["attack"] == "pgd")
    store.engine.dispose()
    assert rows["pgd"]["robust_accuracy"] == before["robust_accuracy"]
    assert rows["pgd"]["clean_accuracy"] == before["clean_accuracy"] and rows["pgd"]["arch"] == "p.zip"
    assert rows["pgd"]["verdict"] == before["verdict"] and rows["square"]["verdict"] != "fail"


def test_its_key_is_of_its_content(made: Made, place: Path, tmp_path: Path):
    archive = zipped(place, tmp_path / "p.zip")
    (one,), (other,) = (resolved(where, PGD).models.values() for where in (place, archive))
    assert one.key() == other.key() and one.code.sha256 == other.code.sha256
    assert find_code(other.code, "") == other.code
    # On another machine it lies at the end of its path below another folder.
    moved = tmp_path / "there" / "net"
    moved.parent.mkdir()
    altered(place, moved, files={})
    elsewhere = one.code.model_copy(update={"place": "/nowhere/net"})
    found = find_code(elsewhere, str(tmp_path / "there"))
    assert found is not None and found.place == str(moved)
    onnx = resolved(place / "model.onnx", SQUARE).models["m"]
    assert onnx.code.sha256 == made.card.files["model.onnx"].sha256 and onnx.shown_arch == "model.onnx"


def test_a_program_alone_is_refused_to_gradients(place: Path):
    for attack in ({"name": "pgd", "eps": 0.1}, {"name": "autoattack", "eps": 0.1}):
        with pytest.raises(SpecError) as error:
            expand(resolved(place / "model.onnx", attack))
        assert str(error.value).startswith(
            f"s: {attack['name']} needs gradients, and model.onnx only answers: expected one of square, spsa, nes, "
        )
    planned = expand(resolved(place / "model.onnx", SQUARE, {"name": "audit", "eps": 0.1}))
    assert [job.spec.kind for job in planned] == ["eval", "eval", "worst"]


def test_a_package_of_users_code_only_answers(place: Path, made: Made, tmp_path: Path):
    network = made.card.network.model_dump(mode="json") | {"arch": None}
    copy = altered(place, tmp_path / "mine", files={}, card={"network": network})
    with pytest.raises(SpecError, match="pgd needs gradients, and mine only answers"):
        expand(resolved(copy, PGD))
    assert len(expand(resolved(copy, SQUARE))) == 1


def test_its_passes_cost_what_those_of_its_network_do(made: Made, tmp_path: Path):
    """What ONNX Runtime computes is not counted; of a program that no network stands behind nothing is known."""
    (packaged,) = resolved(made.place, PGD).models.values()
    data = resolved(made.place, PGD).data
    network = cost.pass_cost(ModelSpec(arch="lenet5"), data)
    assert cost.pass_cost(packaged, data) == network > 0.05
    (tmp_path / "lin.onnx").write_bytes(linear_program(np.ones((64, 10)), np.zeros(10), (1, 8, 8)))
    (program,) = resolved(tmp_path / "lin.onnx", SQUARE).models.values()
    assert cost.pass_cost(program, data) == cost.UNKNOWN


CODE = (
    "import torch\nfrom torch import nn\n"
    "def build():\n    torch.manual_seed(0)\n"
    "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
    "    return {}\n"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch.compile
@pytest.mark.parametrize(
    "model",
    [
        "net",
        "torch.compile(net, backend='eager')",
        "nn.Sequential(torch.compile(net, backend='eager'))",
        "nn.DataParallel(net)",
        "torch.optim.swa_utils.AveragedModel(net)",
    ],
)
def test_code_that_the_user_trusts_lends_its_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str):
    """Of a package of a user's own network, with a first layer; code of another hash is not run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(code := CODE.format(model))
    options: dict[str, Any] = {"weights": None, "normalize": None, "mean": "0.3", "std": "0.4", "dataset": "digits"}
    chosen = model_by_options(options | {"model": "m.py:build"})
    made = make_package(None, chosen, tmp_path / "p", QUICK, lambda line: None)
    given = {"options": {"gradients": "m.py:build"}}
    spec = resolved(made.place, PGD, **given).models["m"]
    assert len(expand(resolved(made.place, PGD, **given))) == 1
    data = load.load("digits", "test")
    x = torch.from_numpy(data.x[:8]).float() / 255
    names = safetensors.torch.load((made.place / "model.safetensors").read_bytes()).keys()
    assert not any("_orig_mod" in name for name in names)
    lent, net = build_network(spec, data, 0), build_network(chosen.model, data, 0)
    ((logits, _, slopes), (own, _, wanted)) = (pull(one, x, lambda z: z[:, :2]) for one in (lent, net))
    assert torch.equal(slopes, wanted) and torch.allclose(logits, own, atol=1e-5) and slopes.abs().max() > 0
    for options, line in (
        ({"gradients": "m.py"}, "cannot be built: expected gradients as FILE.py:factory, got 'm.py'"),
        ({"gradients": "n.py:build"}, "cannot be built: .*No such file"),
        ({"program": "int4"}, "expected program to be one of float32, int8, got 'int4'"),
        ({"layout": "HWC"}, "a package has no option 'layout', it has: gradients, program"),
    ):
        with pytest.raises(SpecError, match=line):
            expand(resolved(made.place, SQUARE, options=options))
    (tmp_path / "m.py").write_text("open('ran', 'w')\n" + code)
    with pytest.raises(SpecError, match=r"m.py is not the code that the package was made with, by its hash"):
        expand(resolved(made.place, PGD, **given))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ({"arch": "lenet6"}, "the network of .* cannot be built: unknown arch 'lenet6'"),
        ({"arch": "convnet3"}, "cannot be built: weights net2/model.safetensors do not fit the model"),
        ({"arch": "lenet5", "options": {"width": "x"}}, "cannot be built: expected numbers as options"),
        ({"arch": "lenet5", "options": [1]}, "cannot be built: "),
        ({"arch": "lenet5", "defence": [{"name": "none"}]}, "cannot be built: 'none'"),
    ],
)
def test_a_network_that_is_none_is_told_in_one_line(place: Path, tmp_path: Path, network: dict[str, Any], line: str):
    copy = altered(place, tmp_path / "net2", files={}, card={"network": network})
    with pytest.raises(SpecError, match=line):
        expand(resolved(copy, PGD))


def test_a_changed_package_is_no_model(place: Path, tmp_path: Path):
    copy = altered(place, tmp_path / "p", files={"model.onnx": b"other"})
    with pytest.raises(SpecError, match=r"is not what its card says: model.onnx: 5 bytes, the card says \d+"):
        resolved(copy, PGD)
    for name, line in (("p.zip", "there is no package"), ("m.onnx", "there is no ONNX file")):
        with pytest.raises(SpecError, match=line):
            resolved(tmp_path / name, PGD)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_one_line_says_so(trained: Store, place: Path, monkeypatch: pytest.MonkeyPatch, missing: str):
    monkeypatch.setitem(sys.modules, missing, None)
    line = rf"needs {missing}: pip install 'robustq\[deploy\]' \("
    with pytest.raises(SpecError, match=line):
        verify(place)
    with pytest.raises(SpecError, match=line):
        expand(resolved(place / "model.onnx", SQUARE))
    with pytest.raises(SpecError, match=rf"robustq package {line}"):
        packaged(trained, 1, place.parent / "new")


def test_what_has_no_effect_on_a_package(place: Path, tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes((place / "model.safetensors").read_bytes())
    with pytest.raises(SpecError, match="weights and dropout have no effect: the package net has its own"):
        expand(resolved(place, PGD, weights=str(tmp_path / "w.safetensors")))
    with pytest.raises(SpecError, match="train has no effect: the model has no parameters that could be trained"):
        expand(resolved(place, PGD, train={"epochs": 1}))
    with pytest.raises(
        SpecError, match=r"net/model\.onnx takes images of shape \(1, 8, 8\), the data set has \(1, 4, 4\)"
    ):
        small = write(tmp_path / "small" / "test.parquet", {"label": Y}).parent
        given = Study.model_validate(study(place, PGD) | {"dataset": f"parquet:{small}", "examples": 2})
        expand(resolve(given, Origin("s", {}, {}), Path(), Path()))


def test_commands(trained: Store, place: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Exit codes: 0 for what is as it was made, 1 for what is not, 2 for what cannot be asked."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(cli.main, ["--store", trained.url, *words], prog_name="robustq")
        return done.exit_code, done.stdout, done.stderr

    code, out, _ = run("verify", str(place), "--digest", made.digest)
    assert code == 0 and "ok      digest: that which was given" in out
    code, out, err = run("verify", str(place), "--digest", "0" * 64, "--json")
    assert code == 1 and '"ok": false' in out and err.count("\n") == 1 and "this is another package" in err
    code, _, err = run("verify", "none")
    assert (code, err) == (2, "robustq: there is no package none\n")
    code, _, err = run("package", "1", "--out", "p.zip", "--weights", "w", "--split", "test")
    assert code == 2 and "have no effect with the number of a job, which has its own" in err
    code, _, err = run("package", "77", "--out", "p.zip")
    assert code == 2 and err.startswith("robustq: job 77: there is none; ")
    code, out, err = run("package", "2", "--out", "p.zip", "--queries", "20", "--examples", "20")
    assert code == 0 and (digest := out.splitlines()[-2].removeprefix("digest ")) and len(digest) == 64
    assert run("verify", "p.zip", "--digest", digest)[0] == 0 and "of 20, the network" in out
    assert "signal repeated-queries flags " in out and "% of who knows it" in out
    code, out, _ = run("package", "2", "--out", "q.zip", "--queries", "5", "--examples", "5", "--no-monitoring")
    assert code == 0 and "signal" not in out
