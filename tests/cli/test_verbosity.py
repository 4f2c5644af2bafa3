"""What -q leaves out and -v adds, and Python's own logging in a program of the user's."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from robustq.cli import main
from robustq.jobs.text.notes import note, set_level
from tests.helpers.small_store import filled

STUDY = "models: {a: {arch: lenet5, train: {epochs: 1}}}\nattacks: [{name: fgsm}]\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with filled(f"sqlite:///{tmp_path / 'r.db'}"):
        pass
    return tmp_path / "r.db"


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    yield
    set_level(logging.WARNING)
    logging.getLogger("robustq").propagate = True


def robustq(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_notes_are_left_out_where_only_errors_are_wanted(path: Path):
    asked = ("--store", str(path), "results", "--attack", "none")
    plain, quiet = robustq(*asked), robustq("-q", *asked)
    assert plain.stderr == "no result has attack none, there are: none\n"
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, plain.stdout, "")
    wrong = robustq("--quiet", "--store", str(path), "results", "--sweep", "none")
    assert (wrong.exit_code, wrong.stderr) == (2, "robustq: there is no sweep 'none', the store has: small\n")
    assert robustq(*asked).stderr == plain.stderr  # the next command is as it was


def test_what_is_done_is_told_and_the_answer_stays_the_same(path: Path, tmp_path: Path):
    (tmp_path / "s.yaml").write_text(STUDY)
    words = ("--store", str(path), "submit", str(tmp_path / "s.yaml"))
    shown = robustq("-v", *words)
    assert shown.stdout == "sweep s: 2 jobs, 2 of them new\n"
    lines = shown.stderr.splitlines()
    assert lines[0].startswith("robustq: study s: data set digits, hash ")
    assert "robustq: model a: is built and shown two images" in lines
    assert "robustq: study s: 2 jobs checked against the kernels" in lines
    assert f"robustq: store sqlite:///{path} opened, to be written" in lines
    again = robustq(*words)
    assert (again.stdout, again.stderr) == ("sweep s: 2 jobs, 0 of them new\n", "")


def test_no_password_is_logged(capsys: pytest.CaptureFixture[str]):
    set_level(logging.INFO)
    logging.getLogger("robustq").info("store %s\nopened", "postgresql://me:secret@host/x")
    assert capsys.readouterr().err == "robustq: store postgresql://me:***@host/x opened\n"


def test_what_failed_is_told_with_its_traceback_and_without_passwords(capsys: pytest.CaptureFixture[str]):
    set_level(logging.ERROR)
    try:
        raise ValueError("postgresql://me:secret@host/x")
    except ValueError:
        logging.getLogger("robustq").exception("it failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["robustq: error: it failed", "Traceback (most recent call last):"]
    assert "ValueError: postgresql://me:***@host/x" in lines


def test_pythons_warnings_go_the_same_way(capsys: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        set_level(logging.INFO)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        told = capsys.readouterr().err
        set_level(logging.ERROR)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        set_level(logging.WARNING)
    assert told.startswith("robustq: ") and "DeprecationWarning: an old name" in told and told.count("\n") == 1
    assert capsys.readouterr().err == ""


def test_both_at_once_and_behind_the_command_are_refused():
    both = robustq("-q", "-v", "list", "models")
    assert (both.exit_code, both.stderr) == (2, "robustq: expected --quiet or --verbose, got both\n")
    behind = robustq("list", "models", "-q")
    assert behind.exit_code == 2
    assert behind.stderr.endswith("Error: -q stands before the command, as in: robustq -q results\n")


def test_in_a_users_program_the_logger_is_theirs(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]):
    note("shown as long as nobody wants errors alone")
    with caplog.at_level(logging.ERROR, logger="robustq"):
        note("left out")
    assert capsys.readouterr().err == "shown as long as nobody wants errors alone\n"
