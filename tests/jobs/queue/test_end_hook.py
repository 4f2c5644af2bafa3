"""The command at a sweep's end: what it hears, and that its failure loses nothing."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import pytest
import sqlalchemy as sa

from robustq.jobs.errors import RunError
from robustq.jobs.queue import end_hook
from robustq.jobs.queue.end_hook import told_at_the_end
from robustq.jobs.queue.left_out import leave_out
from robustq.jobs.store.schema import job

LINE = "env | grep ^ROBUSTQ_ | sort > told"


class Run(NamedTuple):
    """A block with the command at its end, and the variables that the command had."""

    block: Callable[..., list[str]]
    variables: dict[str, str]

    def __call__(self, *args, **how) -> list[str]:
        return self.block(*args, **how)


@pytest.fixture
def run(sqlite_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ROBUSTQ_")]:
        monkeypatch.delenv(name)

    variables: dict[str, str] = {}

    def block(command=LINE, error=None, sweep_id=1, **states):
        with sqlite_store.begin() as db:
            for number, state in states.items():
                db.execute(sa.update(job).where(job.c.id == int(number[1:])).values(state=state))
        said: list[str] = []
        try:
            with told_at_the_end(command, sqlite_store, sweep_id, said.append):
                if error is not None:
                    raise error
        finally:
            told = tmp_path / "told"
            variables.clear()
            if told.exists():
                variables.update(line.split("=", 1) for line in told.read_text().splitlines())
        return said

    return Run(block, variables)


def test_it_hears_name_and_counts(run, sqlite_store):
    everything = {f"j{n}": "done" for n in range(1, 9)}
    assert run(**everything) == []
    assert run.variables == {
        "ROBUSTQ_SWEEP": "small", "ROBUSTQ_STATUS": "done", "ROBUSTQ_ERROR": "", "ROBUSTQ_DONE": "8",
        "ROBUSTQ_FAILED": "0", "ROBUSTQ_CANCELLED": "0", "ROBUSTQ_LEFT": "0", "ROBUSTQ_STORE": sqlite_store.url,
    }  # fmt: skip
    run(j1="failed", j2="cancelled", sweep_id=None)
    assert (run.variables["ROBUSTQ_STATUS"], run.variables["ROBUSTQ_DONE"]) == ("failed", "6")
    assert (run.variables["ROBUSTQ_FAILED"], run.variables["ROBUSTQ_CANCELLED"]) == ("1", "1")
    assert run.variables["ROBUSTQ_SWEEP"] == ""


def test_what_a_budget_left_out_is_no_failure(run, sqlite_store):
    with sqlite_store.begin() as db:
        leave_out(db, 1, [7, 8], "2h")
    run(**{f"j{n}": "done" for n in range(1, 7)})
    heard = [run.variables[f"ROBUSTQ_{name}"] for name in ("STATUS", "DONE", "FAILED", "CANCELLED", "LEFT")]
    assert heard == ["done", "6", "0", "0", "0"]
    run(j1="cancelled")
    assert (run.variables["ROBUSTQ_STATUS"], run.variables["ROBUSTQ_CANCELLED"]) == ("failed", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, status",
    [(KeyboardInterrupt(), "interrupted"), (RunError("no\nroom at postgresql://me:pw@host/db"), "error")],
)
def test_it_hears_of_other_ends_which_stay_what_they_are(run, error, status):
    with pytest.raises(type(error)):
        run(error=error)
    assert run.variables["ROBUSTQ_STATUS"] == status
    assert run.variables["ROBUSTQ_ERROR"] == ("no room at postgresql://me:***@host/db" if status == "error" else "")
    assert run.variables["ROBUSTQ_LEFT"] == "8"


def test_without_its_store_it_hears_no_password_and_no_old_numbers(run, sqlite_store, monkeypatch):
    def gone(*_):
        raise RunError("the store is away")

    monkeypatch.setattr(end_hook, "told", gone)
    monkeypatch.setenv("ROBUSTQ_STORE", "postgresql://me:pw@host/db")
    monkeypatch.setenv("ROBUSTQ_DONE", "3")
    run()
    assert run.variables == {
        "ROBUSTQ_SWEEP": "", "ROBUSTQ_STATUS": "error", "ROBUSTQ_ERROR": "the store is away", "ROBUSTQ_DONE": "",
        "ROBUSTQ_FAILED": "", "ROBUSTQ_CANCELLED": "", "ROBUSTQ_LEFT": "", "ROBUSTQ_STORE": sqlite_store.url,
    }  # fmt: skip


@pytest.mark.slow
def test_its_failure_is_told_and_ends_nothing(run, monkeypatch):
    assert run("exit 3") == ["--on-end exit 3: exit code 3; the results are stored all the same"]
    assert "nowhere-to-be-found: exit code 127" in run("nowhere-to-be-found")[0]
    monkeypatch.setattr(end_hook, "MOST_SECONDS", 0.2)
    assert "no end after" in run("exec sleep 30")[0]


def test_what_it_prints_is_no_result(run, capfd):
    run("echo said")
    assert capfd.readouterr() == ("", "said\n")


def test_without_a_command_nothing_runs(run, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pytest.fail)
    assert run(None) == []


@pytest.mark.slow
def test_what_takes_too_long_ends_with_all_that_it_started(run, tmp_path, monkeypatch):
    monkeypatch.setattr(end_hook, "MOST_SECONDS", 1.0)
    (line,) = run(command="sleep 60 & echo $! > pid; wait")
    assert "minutes: it was killed with what it started" in line
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # a process that was killed goes when it is its turn
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{pid} runs on")
