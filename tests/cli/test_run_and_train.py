"""Bad input is one line — what was expected, what came, how to mend it — with exit code 2 and nothing left behind."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from robustlib.models import build
from robustq import cli
from robustq.jobs.running.inputs import load_data
from robustq.jobs.store.connection import open_store


@pytest.fixture
def robustq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli.main, list(args), prog_name="robustq")

    return run


def refused(result: Result, line: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr == f"robustq: {line}\n"


def weights(path: Path, num_classes: int = 10) -> None:
    model = build(arch="lenet5", in_channels=1, num_classes=num_classes, image_size=(8, 8))
    torch.save(model.state_dict(), path)


MISUSES = [
    (["--attack", "pgdd"], "--attack: unknown attack 'pgdd', expected one of: clean, fgsm, pgd, mifgsm, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, deepfool, cw, fmn, spsa, nes, hopskipjump, noise, transfer, corruption, autoattack, certify, audit, explain: did you mean 'pgd'?"),
    (["--eps", "8"], "--eps: pgd: expected eps in [0, 1] for images in [0, 1], got 8: did you mean 8/255?"),
    (["--eps=-0.1"], "--eps: pgd: expected eps of at least 0, got -0.1"),
    (["--eps", "wide"], "--eps: expected a number such as 8/255, got 'wide'"),
    (["--norm", "L7"], "--norm: attacks.0.norm: input should be 'Linf', 'L2' or 'L1', got 'L7'"),
    (["--param", "steps"], "--param: expected NAME=VALUE, got 'steps'"),
    (["--param", "stepz=3"], "--attack: pgd has no parameter 'stepz', it has: loss, random_start, step_size, steps, stop_at_success: did you mean 'steps'?"),
    (["--param", "steps=many"], "--attack: pgd: expected steps of type int, got 'many'"),
    (["--examples", "some"], "--examples: expected a number or all, got 'some'"),
    (["--dataset", "digitz"], "--dataset: unknown dataset 'digitz', expected one of: digits, mnist, fashion-mnist, cifar10, "
     "cifar100, svhn, parquet:PATH, idx:PATH, folder:PATH, tar:PATH: did you mean 'digits'?"),
    (["--dataset", "parquet:none"], "--dataset: dataset parquet:{tmp}/none: there is no {tmp}/none"),
    (["--dataset", "idx:."], "--dataset: dataset idx:{tmp}: expected train-images-idx3-ubyte or "
     "train-images-idx3-ubyte.gz there, found neither"),
    (["--weights", "none.pt"], "--weights: there is no weights file {tmp}/none.pt (No such file or directory)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), MISUSES, ids=[" ".join(options) for options, _ in MISUSES])
def test_attack_refuses(robustq, tmp_path, options, line):
    weights(tmp_path / "w.pt")
    given = options if "--weights" in options else ["--weights", "w.pt", *options]
    refused(robustq("attack", "lenet5", *given), line.replace("{tmp}", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


def test_unknown_model(robustq, tmp_path):
    weights(tmp_path / "w.pt")
    expected = "MODEL: unknown arch 'lenet6', expected one of: lenet5, convnet3, resnet18, torchvision:NAME: did you mean 'lenet5'?"
    refused(robustq("attack", "lenet6", "--weights", "w.pt"), expected)


def test_a_model_file_without_the_function(robustq, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    refused(
        robustq("attack", "mine.py:build"), f"MODEL: {tmp_path}/mine.py has no function 'build' that builds a model"
    )
    refused(
        robustq("attack", "none.py:build"),
        f"MODEL: there is no model file {tmp_path}/none.py (No such file or directory)",
    )


def test_weights_that_do_not_fit(robustq, tmp_path):
    weights(tmp_path / "w.pt", num_classes=7)
    refused(
        robustq("attack", "lenet5", "--weights", "w.pt"),
        f"MODEL: weights {tmp_path}/w.pt do not fit the model: 'net.fc3.bias' has shape (7,), the model expects (10,) "
        "(2 tensors have another shape)",
    )
    (tmp_path / "w.pt").write_bytes(b"no weights at all")
    result = robustq("attack", "lenet5", "--weights", "w.pt")
    assert result.exit_code == 2
    assert f"{tmp_path}/w.pt is a text file, and no weights: download or copy it again" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_labels_that_the_model_has_no_class_for(robustq, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
    )
    refused(
        robustq("attack", "mine.py:build"),
        "MODEL: the model gives 3 classes, but the dataset has 10: expected a logit for every label",
    )


def test_images_outside_the_box(robustq, tmp_path):
    """Files that hold more than 8 bits: 16-bit PNGs and IDX files of floats."""
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "pictures" / "cat" / "1.png")
    weights(tmp_path / "w.pt")
    attack = ("attack", "lenet5", "--weights", "w.pt", "--dataset")
    path = tmp_path / "pictures" / "cat" / "1.png"
    result = robustq(*attack, "folder:pictures")
    assert result.stderr.startswith(f"robustq: --dataset: {path}: expected an 8-bit image, got mode 'I")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)

    (tmp_path / "idx").mkdir()
    for split in ("train", "t10k"):
        (tmp_path / "idx" / f"{split}-images-idx3-ubyte").write_bytes(
            struct.pack(">HBBIII", 0, 0x0D, 3, 1, 2, 2) + bytes(16)
        )
        (tmp_path / "idx" / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 0x08, 1, 1) + bytes(1))
    refused(
        robustq(*attack, "idx:idx"),
        f"--dataset: {tmp_path}/idx/t10k-images-idx3-ubyte: expected unsigned bytes (IDX type 0x08), got type 0x0D: "
        "images must be 8-bit",
    )


def test_no_network_says_what_to_fetch_or_what_works_without(robustq, tmp_path, monkeypatch):
    from urllib.error import URLError

    import torchvision

    def offline(**kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    monkeypatch.setenv("ROBUSTQ_DATA", str(tmp_path / "downloads"))
    weights(tmp_path / "w.pt")
    refused(
        robustq("attack", "lenet5", "--weights", "w.pt", "--dataset", "cifar10"),
        "--dataset: dataset CIFAR10 could not be downloaded (<urlopen error Name or service not known>): put torchvision's "
        f"files of CIFAR10 into {tmp_path}/downloads/cifar10, or use one that works offline: digits, parquet:PATH, "
        "idx:PATH, folder:PATH, tar:PATH",
    )


STUDY = """\
name: small
models:
  a: {arch: lenet5, train: {objective: standard}}
attacks:
  - {name: pgdd}
"""


def test_a_study_names_file_and_line(robustq, tmp_path):
    (tmp_path / "s.yaml").write_text(STUDY)
    line = "s.yaml:5: unknown attack 'pgdd', expected one of: clean, fgsm, pgd, mifgsm, apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square, deepfool, cw, fmn, spsa, nes, hopskipjump, noise, transfer, corruption, autoattack, certify, audit, explain: did you mean 'pgd'?"
    for name in ("run", "submit"):
        refused(robustq(name, "s.yaml"), line)
    refused(robustq("run", "none.yaml"), "cannot read the study none.yaml: No such file or directory")
    refused(robustq("run", "s.yaml", "--dataset", "x"), "--dataset: unknown dataset 'x', expected one of: digits, mnist, "
            "fashion-mnist, cifar10, cifar100, svhn, parquet:PATH, idx:PATH, folder:PATH, tar:PATH")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


READERS = [
    ["status"],
    ["results"],
    ["drive"],
    ["logs", "1"],
    ["cancel", "1"],
    ["retry", "1"],
    ["export", "x.arrow"],
    ["report", "--sweep", "x"],
    ["ui", "--port", "0"],
]
WAITS = ["ui"]  # which serves a page that waits for a store


@pytest.mark.parametrize("args", READERS, ids=" ".join)
def test_a_missing_or_foreign_store(robustq, tmp_path, args):
    missing = "`robustq run` or `robustq submit` makes one, --store names another"
    if args[0] not in WAITS:
        refused(robustq(*args), f"there is no store {tmp_path}/.robustq/results.db: {missing}")
        assert not list(tmp_path.iterdir())
    (tmp_path / "notes").write_text("no database at all, however long one looks at it\n" * 50)
    mend = "it is no SQLite database: name another file with --store"
    refused(robustq("--store", "notes", *args), f"store sqlite:///notes: {mend}")


def test_what_the_store_does_not_have(robustq, tmp_path):
    open_store(str(tmp_path / "r.db"), create=True, write=True).engine.dispose()
    store = ("--store", "r.db")
    refused(robustq(*store, "results", "--sweep", "x"), "there is no sweep 'x', the store has: none")
    refused(robustq(*store, "logs", "7"), "there is no job 7")
    refused(robustq(*store, "cancel"), "expected numbers of jobs or --sweep NAME, got neither")
    refused(robustq(*store, "export", "t.xls"), "expected a file ending in .arrow, .parquet or .csv, got t.xls")
    assert json.loads(robustq(*store, "results", "--json").stdout) == []
    assert robustq(*store, "status").stdout == "no jobs\n"


def test_a_folder_that_cannot_be_written(robustq, tmp_path, monkeypatch):
    open_store(str(tmp_path / "r.db"), create=True, write=True).engine.dispose()
    (tmp_path / "file").write_text("")
    line = "PATH: file/t.arrow cannot be written: Not a directory: choose another place"
    refused(robustq("--store", "r.db", "export", "file/t.arrow"), line)
    monkeypatch.setenv("ROBUSTQ_HOME", str(tmp_path / "file"))
    (tmp_path / "s.yaml").write_text(STUDY.replace("pgdd", "pgd"))
    load_data.cache_clear()  # another test may have read the digits
    refused(robustq("submit", "s.yaml"), f"s.yaml:1: cannot read {tmp_path}/file/datasets: Not a directory")


def test_a_full_disk(robustq, tmp_path, monkeypatch):
    """Whatever is being written, the line is the same, and what was there before stays."""
    from robustq.jobs.results import export_files

    open_store(str(tmp_path / "r.db"), create=True, write=True).engine.dispose()
    mend = "no room left on the disk: make room, then run the same command again"
    for name, where, what in (("t.csv", Path, "write_bytes"), ("t.parquet", export_files, "open_writer")):
        (tmp_path / name).write_text("kept")

        def full(*args: object, name: str = name) -> None:
            raise OSError(28, "No space left on device", name)

        with monkeypatch.context() as patched:
            patched.setattr(where, what, full)
            refused(robustq("--store", "r.db", "export", name), f"{name}: {mend}")
        assert (tmp_path / name).read_text() == "kept"


def test_wrong_usage_is_clicks_own(robustq):
    assert robustq("attack").exit_code == 2
    assert robustq("no-such-command").exit_code == 2
    assert robustq("list", "colours").exit_code == 2


@pytest.mark.parametrize("kind", ["models", "attacks", "datasets", "objectives"])
def test_lists(robustq, kind):
    names = {row["name"] for row in json.loads(robustq("list", kind, "--json").stdout)}
    wanted = {
        "models": {"lenet5", "convnet3", "resnet18"},
        "attacks": {"clean", "fgsm", "pgd", "deepfool"},
        "datasets": {"digits", "cifar10", "parquet:PATH"},
        "objectives": {"standard", "fgsm", "pgd", "deepfool"},
    }
    assert wanted[kind] <= names


def test_every_command_has_help(robustq):
    for name in cli.main.commands:
        result = robustq(name, "--help")
        assert result.exit_code == 0
        assert len(result.output.splitlines()) > 3


USERS = """
import torch
print("imported")
class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear = kind, torch.nn.Linear(64, 10)
    def forward(self, x):
        print("passed")
        if self.kind == "fails":
            raise KeyError("oops")
        return self.linear(x.flatten(1))
def prints(): return Net("")
def fails(): return Net("fails")
def raises(): raise RuntimeError("no weights\\nhere")
def exits(): raise SystemExit(3)
def asks(argument): return Net("")
def doubles(): return Net("").double()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("m.py:raises", "{tmp}/m.py:raises failed: RuntimeError: no weights here (m.py:14)"),
        ("m.py:exits", "{tmp}/m.py:exits failed: SystemExit: 3 (m.py:15)"),
        ("m.py:asks", "{tmp}/m.py:asks failed: TypeError: asks() missing 1 required positional argument: 'argument'"),
        ("m.py:fails", "the model fails on float32 images of shape (2, 1, 8, 8): KeyError: 'oops'"),
        ("m.py:doubles", "the model fails on float32 images of shape (2, 1, 8, 8): RuntimeError: "),
        ("imports.py:f", "{tmp}/imports.py cannot be imported: ModuleNotFoundError: No module named 'nowhere' (imports.py:1)"),
        ("broken.py:f", "{tmp}/broken.py cannot be imported: SyntaxError: "),
        ("m.py", "expected the function that builds it too, as m.py:build, got 'm.py'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_users_model_is_one_line(robustq, tmp_path, model, line):
    (tmp_path / "m.py").write_text(USERS.lstrip())
    (tmp_path / "imports.py").write_text("import nowhere\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    result = robustq("attack", model, "--examples", "20")
    assert result.exit_code == 2 and result.stdout == ""
    (last,) = [text for text in result.stderr.splitlines() if text.startswith("robustq: ")]
    assert last.startswith(f"robustq: MODEL: {line}".format(tmp=tmp_path))
    assert result.stderr.endswith(f"{last}\n")


@pytest.mark.slow
def test_what_a_model_prints_is_no_result(robustq, tmp_path):
    (tmp_path / "m.py").write_text(USERS.lstrip())
    (tmp_path / "s.yaml").write_text(
        "models: {mine: {file: 'm.py:prints'}}\nattacks: [{name: pgd, eps: 0.1}]\nexamples: 50"
    )
    result = robustq("run", "s.yaml", "--dry-run", "--json")
    assert [job["model"] for job in json.loads(result.stdout)["jobs"]] == ["mine"]
    assert "imported" in result.stderr and "passed" in result.stderr


@pytest.mark.slow
def test_a_dry_run_says_what_cannot_run(robustq, tmp_path):
    """Through JPEG there is no gradient; the network inside is trained without it."""
    (tmp_path / "s.yaml").write_text(
        "models: {jpeg: {arch: lenet5, train: {epochs: 1}, defence: {name: jpeg}}}\nexamples: 50\n"
        "attacks: [{name: pgd, eps: 0.1}, {name: noise, eps: 0.1, queries: 10}]"
    )
    found = json.loads(robustq("run", "s.yaml", "--dry-run", "--json").stdout)["jobs"]
    assert [(job["job"], job["attack"], job["seconds"] is None) for job in found] == [
        ("train", None, False), ("eval", "pgd", True), ("eval", "noise", False),
    ]  # fmt: skip
    text = robustq("run", "s.yaml", "--dry-run").stdout
    assert text.endswith("1 of them will fail: it needs a gradient, and jpeg has none\n")


def test_a_store_that_is_a_folder(robustq, tmp_path):
    (tmp_path / "folder").mkdir()
    line = f"expected the store as a file such as {tmp_path}/folder/results.db, got the folder {tmp_path}/folder"
    refused(robustq("--store", "folder", "results"), line)
    refused(
        robustq("attack", "m.py:f", "--per-example", "x.txt"),
        "expected a file ending in .arrow, .parquet or .csv, got x.txt",
    )


def test_a_folder_that_is_gone_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = CliRunner().invoke(cli.main, ["status"], prog_name="robustq")
    assert result.exit_code == 2
    assert result.stderr == "robustq: the folder that this command is given in is gone: go to one that exists\n"
