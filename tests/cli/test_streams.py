"""Standard output that is closed, full or no longer read: one line or none, never a traceback, and exit code 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustq.jobs.store.connection import open_store

ROOT = Path(__file__).parents[2]
COMMANDS = [["list", "attacks"], ["--help"], ["run", "--help"], ["status"], ["results", "--json"], ["sql", "select 1"]]
COMMANDS += [["db", "info"], ["db", "snapshot"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    open_store(str(folder / "r.db"), create=True, write=True).engine.dispose()
    return folder


def robustq(folder: Path, words: list[str], redirection: str) -> tuple[int, list[str]]:
    """A command with the shell's redirection behind it: exit code, and what is said on standard error."""
    env = os.environ | {"ROBUSTQ_STORE": "r.db"}
    command = ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-m", "robustq", *words]
    ended = subprocess.run(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.slow
def test_a_full_disk_is_said_in_one_line(folder: Path, words: list[str]):
    code, said = robustq(folder, words, "> /dev/full")
    assert (code, said) == (1, ["robustq: the answer cannot be printed: No space left on device"])


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS[3:6], ids=" ".join)
def test_a_closed_stdout_is_said_in_one_line(folder: Path, words: list[str]):
    code, said = robustq(folder, words, ">&-")
    assert (code, said) == (1, ["robustq: the answer cannot be printed: it is closed"])


@pytest.mark.parametrize("words", COMMANDS[:4], ids=" ".join)
@pytest.mark.slow
def test_whoever_reads_no_more_is_told_nothing(folder: Path, words: list[str]):
    code, said = robustq(folder, words, "> >(exec sleep 0) ; exit ${PIPESTATUS[0]}")  # it may end first, or after
    assert code in (0, 1) and not said
    env = os.environ | {"ROBUSTQ_STORE": "r.db"}
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "robustq", *words],
        cwd=folder,
        env=env,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.slow
def test_where_nothing_can_be_said_the_work_is_done_all_the_same(folder: Path):
    code, said = robustq(folder, ["export", "e.csv"], "2> /dev/full")
    assert (code, said) == (0, []) and (folder / "e.csv").exists()
