"""What is sent of a study's folder: what git knows, nothing by a link out of it, and no secrets."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustq import cli
from robustq.cluster.remote.sent_files import choose_files, looks_secret
from robustq.cluster.remote.upload import prepared_upload, upload_contents
from robustq.jobs.errors import SpecError

STUDY = "name: far\nmodels: {a: {file: 'mine.py:make', weights: weights/w.key}}\nattacks: [{name: pgd, eps: 0.1}]\n"


def plant(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("import helper\n" if name == "mine.py" else name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "study"
    plant(found, "mine.py", "helper.py", "weights/w.key", "tokenizer.json", "code/deep/a.py", "results.db")
    (found / "far.yaml").write_text(STUDY)
    return found


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True, capture_output=True
    )


SENT = {"far.yaml", "mine.py", "helper.py", "weights/w.key", "tokenizer.json", "code/deep/a.py"}


@pytest.mark.slow
def test_without_git_all_goes_but_what_is_known_to_be_left_out(folder: Path):
    plant(folder, ".cache/x", "__pycache__/y", ".env")
    found = upload_contents(folder / "far.yaml")
    assert set(found.files) == SENT and found.left_out == {".env": "looks like a secret"}
    with prepared_upload(folder / "far.yaml") as (sent, _):
        there = {str(path.relative_to(sent / "study")) for path in (sent / "study").rglob("*") if path.is_file()}
        assert there == SENT and not any(path.is_symlink() for path in sent.rglob("*"))


def test_no_link_leads_out_and_what_is_no_file_stays(folder: Path, tmp_path: Path):
    plant(tmp_path, "outside/cert.txt")
    links = {"passwd": "/etc/passwd", "certs": "../outside", "loop": ".", "a": "b", "b": "a", "dangling": "nothing",
             "code/up": "../../outside/cert.txt", "other.py": "mine.py", "more": "code", "code/deep/back": ".."}  # fmt: skip
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        bound.bind("socket")
        os.chdir(before)
        found = upload_contents(folder / "far.yaml")
    assert set(found.files) == SENT | {"other.py", "more/deep/a.py"}
    assert found.left_out == {
        "passwd": "is a link out of the folder, to /etc/passwd",
        "certs": f"is a link out of the folder, to {tmp_path / 'outside'}",
        "code/up": f"is a link out of the folder, to {tmp_path / 'outside/cert.txt'}",
        "loop": "is a link to ., that holds it",
        "code/deep/back": "is a link to code, that holds it",
        "a": "is a link that leads nowhere",
        "b": "is a link that leads nowhere",
        "dangling": "is a link that leads nowhere",
        "pipe": "is no file but a pipe, socket or device",
        "socket": "is no file but a pipe, socket or device",
    }
    assert found.files["more/deep/a.py"].read_text() == "code/deep/a.py"


def test_a_linked_folder_counts_as_often_as_it_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "code" / "large").write_bytes(bytes(1000))
    monkeypatch.setattr("robustq.cluster.remote.upload.LIMIT_BYTES", 1500)
    upload_contents(folder / "far.yaml")
    (folder / "again").symlink_to("code")
    with pytest.raises(SpecError, match="can be sent: put the study"):
        upload_contents(folder / "far.yaml")


def test_of_a_work_tree_goes_what_git_knows_and_what_the_study_names(folder: Path):
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("ignored/\n*.env\nweights/\n")
    plant(folder, "ignored/large", "prod.env", "new.txt", "gone.txt", "tracked/.hidden", ".env.local")
    git(folder, "add", "mine.py", "gone.txt", "tracked/.hidden")
    (folder / "gone.txt").unlink()
    (folder / "link").symlink_to("ignored/large")
    found = upload_contents(folder / "far.yaml")
    assert set(found.files) == SENT | {"new.txt", "tracked/.hidden"}
    assert found.left_out == {
        ".env.local": "looks like a secret",
        "link": "is a link to ignored/large, that is not sent",
    }
    requested = upload_contents(folder / "far.yaml", ["ignored", "prod.env"])
    assert set(requested.files) - set(found.files) == {"ignored/large", "prod.env", "link"}
    git(folder, "add", "-f", ".env.local")
    with pytest.raises(SpecError, match=r"look like secrets: \.env\.local; .* --send \.env\.local$"):
        upload_contents(folder / "far.yaml")


def test_a_repository_within_is_asked_too(folder: Path):
    git(folder, "init", "-q")
    plant(folder, "inner/kept.py", "inner/left.tmp")
    (folder / "inner" / ".gitignore").write_text("*.tmp\n")
    git(folder / "inner", "init", "-q")
    assert {name for name in upload_contents(folder / "far.yaml").files if name.startswith("inner")} == {
        "inner/kept.py"
    }


def test_where_git_does_not_answer_nothing_is_sent(folder: Path):
    (folder / ".git").mkdir()
    with pytest.raises(SpecError, match=r"^git does not say what it knows of .*, so that nothing is sent: "):
        upload_contents(folder / "far.yaml")


def test_a_repository_runs_no_program(folder: Path):
    git(folder, "init", "-q")
    (folder / "run.sh").write_text(f"#!/bin/sh\ntouch {folder}/ran\n")
    (folder / "run.sh").chmod(0o755)
    git(folder, "config", "core.fsmonitor", f"{folder}/run.sh")
    upload_contents(folder / "far.yaml")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [".env", "prod.env", "a.pem", "b/TLS.KEY", "id_rsa", "id_ed25519.pub", "credentials.json", "x.p12", ".netrc",
     ".aws/config", ".ssh/known_hosts", ".npmrc", ".pypirc", "hf_token", "token", "api.token.txt", ".pgpass"],
)  # fmt: skip
def test_names_of_secrets_are_refused_unless_asked_for(folder: Path, name: str):
    assert looks_secret(name)
    if name.startswith("."):
        return
    plant(folder, name)
    with pytest.raises(SpecError, match=f"look like secrets: {name}; .* --send {name}$"):
        upload_contents(folder / "far.yaml")
    assert set(upload_contents(folder / "far.yaml", [name]).files) == SENT | {name}


def test_parts_of_models_are_no_secrets():
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "token.py",
             "tokens.pt", "keys.csv", "monkey.py", ".env.example", "environment.yml", "class_token.pt")  # fmt: skip
    assert not [name for name in names if looks_secret(name)]


def test_a_file_that_the_study_names_goes_or_is_an_error(folder: Path, tmp_path: Path):
    for name, target, complaint in [
        ("helper.py", "../helper.py", "helper, which mine.py imports, lies outside of the study's folder"),
        ("weights/w.key", "../../w.pt", "weights/w.key lies outside of the study's folder"),
        ("weights/w.key", "none.pt", "weights/w.key: there is no file"),
    ]:
        plant(tmp_path, "helper.py", "w.pt")
        kept = (folder / name).read_text()
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        with pytest.raises(SpecError, match=complaint):
            upload_contents(folder / "far.yaml")
        (folder / name).unlink()
        (folder / name).write_text(kept)


def test_a_linked_folder_can_only_be_asked_for_within(folder: Path, tmp_path: Path):
    (folder / "out").symlink_to(tmp_path)
    for name in ("out", "..", "none", "/etc/passwd"):
        with pytest.raises(SpecError, match=f"^--send {name}: expected a file or folder in the study's folder"):
            choose_files(folder, requested=[name])


def test_a_dry_run_lists_what_would_be_sent_and_reaches_nobody(folder: Path):
    (folder / "out").symlink_to("/etc")
    words = ["submit", str(folder / "far.yaml"), "--dry-run"]
    shown = CliRunner().invoke(cli.main, [*words, "--cluster", "http://192.0.2.1:8265"])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert {line.split()[1] for line in lines[: len(SENT)]} == SENT
    assert lines[len(SENT) :] == [
        "left out: out is a link out of the folder, to /etc",
        "6 files, 0.0 MB, beside robustq's own code",
    ]
    refused = CliRunner().invoke(cli.main, words, env={"ROBUSTQ_CLUSTER": None})
    assert refused.exit_code == 2 and "--dry-run has no effect without --cluster" in refused.stderr


MODEL = "{file: 'mine.py:make', weights: weights/w.key}"


@pytest.mark.parametrize(
    ("was", "written", "told"),
    [
        ("eps: 0.1", "eps: -0.1", ":3: pgd: expected eps"),
        ("eps: 0.1", "eps: [0.1, 8]", ":3: pgd: expected eps"),
        ("eps: 0.1", "norm: L3, eps: 0.1", "L3"),
        ("eps: 0.1", "eps: 0.1, steps: 0", ":3: pgd: expected steps of at least 1, got 0"),
        ("name: pgd", "name: pgdd", "unknown attack 'pgdd'"),
        (MODEL, "{arch: lenet5, train: {objective: pgd, eps: -1}}", ":2: "),
        ("w.key}", "w.key, defence: [{name: smoothin}]}", "unknown defence 'smoothin'"),
        ("name: pgd", "name: explain, method: salient", ":3: unknown method 'salient'"),
    ],
)
def test_what_the_head_would_refuse_is_refused_before_it_is_sent(was: str, written: str, told: str, folder: Path):
    """In one line with the place in the study's file, without its data or models; by --dry-run too."""
    (folder / "far.yaml").write_text(STUDY.replace(was, written))
    words = ["submit", str(folder / "far.yaml"), "--cluster", "http://nowhere.invalid:1", "--dry-run"]
    ran = CliRunner().invoke(cli.main, words)
    assert ran.exit_code == 2 and told in ran.stderr, ran.output
    assert "far.yaml:" in ran.stderr and len(ran.stderr.strip().splitlines()) == 1


def test_a_study_of_explanations_is_sent_too(folder: Path):
    (folder / "far.yaml").write_text(STUDY.replace("name: pgd", "name: explain, method: saliency"))
    words = ["submit", str(folder / "far.yaml"), "--cluster", "http://nowhere.invalid:1", "--dry-run"]
    ran = CliRunner().invoke(cli.main, words)
    assert ran.exit_code == 0 and "mine.py" in ran.output, ran.output
