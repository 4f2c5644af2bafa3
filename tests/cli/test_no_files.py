"""Pipes, devices, sockets, folders and made-up files where a file is named: refused at once, in one line."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from robustlib.regular_files import irregular
from robustq import cli
from robustq.jobs.errors import StoreError
from robustq.jobs.store.database.store_url import parse_url
from tests.helpers.bounded import bounded
from tests.helpers.wrong_case import MODEL, STUDY, network
from tests.helpers.wrong_files import no_files

KINDS = {
    "pipe": "a pipe", "zero": "a device", "/dev/zero": "a device", "/dev/full": "a device", "socket": "a socket",
    "folder": "a folder", "/proc/self/mem": "a file that the system makes up", "/proc/kmsg": "a file that the system makes up",
}  # fmt: skip
COMMANDS = {
    "study": ["submit", "{}"],
    "sent study": ["submit", "{}", "--cluster", "http://127.0.0.1:1", "--dry-run"],
    "weights": ["attack", "lenet5", "--weights", "{}", "--eps", "0.1"],
    "data": ["attack", "lenet5", "--weights", "w.pt", "--eps", "0.1", "--dataset", "parquet:{}"],
    "store": ["--store", "{}", "status"],
    "store to write": ["--store", "{}", "submit", "s.yaml"],
    "store for sql": ["--store", "{}", "sql", "select 1"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    no_files(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "m.py").write_text(MODEL)
    torch.save(network().state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("place", KINDS)
@pytest.mark.parametrize("what", COMMANDS)
def test_what_is_no_file_is_refused_before_it_is_opened(folder: Path, what: str, place: str):
    with bounded(10):
        result = CliRunner().invoke(cli.main, ["--store", "r.db", *(word.format(place) for word in COMMANDS[what])])
    assert isinstance(result.exception, SystemExit), result.exception
    if place == "folder" and what in ("study", "sent study", "data"):  # of which click tells, or data may lie there
        assert result.exit_code == 2
        return
    lines = result.stderr.splitlines()
    assert result.exit_code == 2 and len(lines) == 1 and KINDS[place].rpartition(" that ")[0] in lines[0], result.stderr
    assert not (folder / "r.db").exists()


@pytest.mark.parametrize("place", KINDS)
def test_says_what_it_is(folder: Path, place: str):
    assert irregular(place) == KINDS[place]
    assert irregular("s.yaml") is None and irregular("none") is None and irregular("a\0b") is None


def test_a_pipe_of_code_and_a_pipe_that_it_imports(folder: Path):
    os.mkfifo(folder / "n.py")
    with bounded(10):
        result = CliRunner().invoke(cli.main, ["--store", "r.db", "attack", "n.py:make", "--eps", "0.1"])
    assert (result.exit_code, result.stderr) == (
        2, f"robustq: MODEL: expected a file as the model file, got {folder}/n.py, which is a pipe\n",
    )  # fmt: skip


def test_a_token_is_not_read_from_a_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from robustq.cluster.ray_connection import find_token

    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for place in ("zero", "pipe", "folder", "w.pt"):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", place)
        with bounded(10):
            assert find_token() is None
    (folder / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    assert find_token() == "abc"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://host/x.db", "got its host"), ("sqlite:///x.db?mode=ro", "got its query"), ("sqlite://u:p@h/x.db", "got its username"),
        ("sqlite+aiosqlite:///x.db", r"the driver sqlite\+aiosqlite"), ("sqlite:x", "expected a store"), ("file:x", "expected a store"),
        ("postgresql:x", "expected a store"), ("sqlite:///file::memory:", "a database in memory"), ("x" * 300, "File name too long"),
        ("a\0b", "no file can have this name"), ("\udcff.db", "no file or server can have this name"),
        (f"postgresql://{'h' * 70}/x", "no file or server can have this name"), ("loop", "leads back to itself"), ("", "expected a store"),
    ],
)  # fmt: skip
def test_urls_that_are_no_store(folder: Path, url: str, said: str):
    with pytest.raises(StoreError, match=said):
        parse_url(url)


def test_urls_that_are(folder: Path):
    for url in ("sqlite:///a.db", "a.db", "sqlite+pysqlite:///a.db", f"sqlite:///{folder}/a.db"):
        assert parse_url(url)[1] == folder / "a.db"
    assert parse_url("postgresql+psycopg://h:5432/d")[1] is None


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "0", "-1", "1e30", "1e400", "x", ""])
def test_times_are_finite_and_above_zero(folder: Path, seconds: str):
    result = CliRunner().invoke(cli.main, ["--store", "r.db", "sql", "select 1", f"--seconds={seconds}"])
    assert result.exit_code == 2 and "Invalid value for '--seconds'" in result.stderr


OUT = {"report": ["report", "--sweep", "x", "--out"], "train": ["train", "lenet5", "--out"], "export": ["export"], "fetch": [
    "fetch", "--cluster", "http://127.0.0.1:1", "--out"], "images": ["attack", "m.py:make", "--eps", "0.1", "--per-example"]}  # fmt: skip


@pytest.mark.parametrize(
    "place", ["/proc/x.csv", "/sys/x/y.csv", "s.yaml/x.csv", "loop/x.csv", "nowhere/x.csv", "x" * 300, ""]
)
@pytest.mark.parametrize("what", OUT)
def test_outputs_that_cannot_be_are_refused_before_anything_runs(folder: Path, what: str, place: str):
    result = CliRunner().invoke(cli.main, ["--store", "r.db", *OUT[what], place])
    assert result.exit_code == 2 and "cannot be written: " in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "r.db").exists()


def test_a_very_long_word_is_told_shortened(folder: Path):
    result = CliRunner().invoke(cli.main, ["--store", "r.db", "submit", "s.yaml", "--dataset", "x" * 10**6])
    assert result.exit_code == 2 and len(result.stderr) < 2100
