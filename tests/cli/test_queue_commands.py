"""Commands that steer the queue, as a user types them."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from robustq.cli import main
from robustq.cluster.process_identity import identity
from robustq.cluster.remote.run_remotely import remotely
from robustq.jobs.commands.base import remote_words
from robustq.jobs.commands.queue import prioritise, status
from robustq.jobs.queue import claims, drivers, transitions
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import driver
from robustq.jobs.submission.submit import record
from tests.helpers.small_store import resolved, small_plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = open_store(str(tmp_path / "r.db"), create=True, write=True)
    with store.begin() as db:
        record(db, resolved(), small_plan())
        drivers.register(db, "one", "here", 1, 0.0, "0")
    store.engine.dispose()
    return tmp_path / "r.db"


def robustq(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--store", str(path), *words])


def test_pause_resume_and_priority(path: Path):
    assert robustq(path, "pause", "--sweep", "small").output == "8 jobs wait until the sweep is resumed\n"
    store = open_store(str(path), write=True)
    with store.begin() as db:
        assert claims.claim(db, "one", most=1) == []
    assert robustq(path, "resume", "--sweep", "small").output == "8 jobs go on\n"
    assert robustq(path, "prioritise", "7", "5").output == "1 job has priority 7\n"
    with store.begin() as db:
        assert claims.claim(db, "one", most=1)[0].id == 5
    store.engine.dispose()
    refused = robustq(path, "prioritise", "7")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "robustq: expected numbers of jobs or --sweep NAME, got neither\n",
    )
    refused = robustq(path, "pause", "--sweep", "other")
    assert (refused.exit_code, refused.stderr) == (2, "robustq: there is no sweep 'other', the store has: small\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pause", "--sweep", "small"], {"paused": True, "unfinished": 8}),
        (["resume", "--sweep", "small"], {"paused": False, "unfinished": 8}),
        (["prioritise", "7", "5"], {"changed": 1, "priority": 7}),
        (["cancel", "1"], {"cancelled": 1, "stay": 0, "wanted_by": []}),
        (["cancel", "--sweep", "small"], {"cancelled": 8, "stay": 0, "wanted_by": []}),
        (["retry", "--sweep", "small"], {"queued": 0}),
        (["db", "upgrade"], None),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_actions_tell_programs_what_they_did(path: Path, words: list[str], found: dict[str, object] | None):
    done = robustq(path, *words, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert found is None or json.loads(done.stdout) == found
    assert words != ["db", "upgrade"] or json.loads(done.stdout)["done"].endswith("already")


def test_a_submitted_study_is_told_to_programs(tmp_path: Path):
    study = tmp_path / "s.yaml"
    study.write_text("models: {a: {arch: lenet5, train: {epochs: 1}}}\nattacks: [{name: fgsm}]\n")
    for new in (2, 0):
        done = robustq(tmp_path / "s.db", "submit", str(study), "--json")
        assert json.loads(done.stdout) == {"sweep": "s", "jobs": 2, "new": new, "left_out": 0}


@pytest.mark.slow
def test_jobs_of_a_driver_that_died_are_told_at_once(path: Path):
    """Their lease has most of a minute to go, and the store still has them as running."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    store = open_store(str(path), write=True)
    with store.begin() as db:
        for name, pid in (("dead", process.pid), ("alive", os.getpid())):
            drivers.register(db, name, "here", pid, 0.0, "0", identity(pid))
        for name, job_id in (("dead", 1), ("alive", 5)):
            (mine,) = claims.claim(db, name, most=1)
            assert mine.id == job_id and transitions.start(db, mine, name, "node", 1, "")
    assert robustq(path, "status").stdout.startswith("6 blocked, 2 running\n")
    process.kill()
    process.communicate()
    shown = robustq(path, "status").stdout
    first, second, *_ = shown.split("\n\n")
    assert re.fullmatch(r"6 blocked, 1 running\ndevice hours: (less than )?[0-9.]+ of CPU cores", first)
    assert second == (
        f"1 job left by a driver that died (pid {process.pid} on here): run again, or robustq drive, to go on with it"
    )
    assert ["small", "6", "0", "0", "1", "0", "0", "0", "1"] in [line.split() for line in shown.splitlines()]
    assert [line.split()[0] for line in shown.partition("running:\n")[2].splitlines()[2:]] == ["5"]
    found = json.loads(robustq(path, "status", "--sweep", "small", "--json").stdout)
    assert found["left_behind"] == [{"id": 1, "state": "running", "host": "here", "pid": process.pid}]
    assert found["jobs"]["running"] == 2  # what the store has: nobody has taken it back yet
    with store.begin() as db:
        db.execute(sa.update(driver).values(stopped_at=1.0))
    store.engine.dispose()


@pytest.mark.slow
def test_watching_goes_on_until_all_jobs_have_ended(path: Path):
    def cancel_soon() -> None:
        time.sleep(1.5)
        robustq(path, "cancel", "--sweep", "small")

    thread = threading.Thread(target=cancel_soon)
    thread.start()
    shown = robustq(path, "status", "--watch")
    thread.join()
    assert shown.exit_code == 0
    assert shown.output.startswith("6 blocked, 2 queued\n") and "\n8 cancelled\n" in shown.output
    assert "Cancelled: cancelled on request" in robustq(path, "logs", "1", "-f").output


def test_a_submitted_study_has_its_priority(tmp_path: Path):
    study = tmp_path / "s.yaml"
    study.write_text("models: {a: {arch: lenet5, train: {epochs: 1}}}\nattacks: [{name: fgsm}]\n")
    assert robustq(tmp_path / "s.db", "submit", str(study), "--priority", "4").exit_code == 0
    found = robustq(tmp_path / "s.db", "sql", "SELECT kind, priority FROM job ORDER BY id", "--json")
    assert found.output.split() == [
        "[",
        "{",
        '"kind":',
        '"train",',
        '"priority":',
        "9",
        "},",
        "{",
        '"kind":',
        '"eval",',
        '"priority":',
        "8",
        "}",
        "]",
    ]


@pytest.mark.parametrize("command", [["attach"], ["stop", "x"], ["fetch"]], ids=" ".join)
def test_a_cluster_must_be_named(tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ROBUSTQ_CLUSTER", raising=False)
    refused = robustq(tmp_path / "none.db", *command)
    assert refused.exit_code == 2
    assert "expected --cluster URL or ROBUSTQ_CLUSTER, got neither" in refused.stderr


def test_a_cluster_is_a_dashboards_address(tmp_path: Path):
    refused = robustq(tmp_path / "none.db", "status", "--cluster", "ray://head:10001")
    assert refused.exit_code == 2
    assert refused.stderr == (
        "robustq: --cluster: expected the address of a Ray dashboard such as http://HEAD:8265, got 'ray://head:10001'\n"
    )


def test_words_for_another_shell_are_what_was_typed_but_for_the_place():
    typed = ["--sweep", "a b", "--cluster", "http://h", "--", "-3", "5", "6"]
    with remotely(prioritise).make_context("prioritise", list(typed)) as ctx:
        assert remote_words(ctx) == ["prioritise", "--sweep", "a b", "--", "-3", "5", "6"]
    with remotely(status).make_context("status", ["--json", "--insecure"]) as ctx:
        assert remote_words(ctx) == ["status", "--json"]


@pytest.mark.parametrize(
    "words",
    [
        ["cancel", "99999999999999999999"],
        ["retry", "0"],
        ["logs", "99999999999999999999"],
        ["replay", "--job", "99999999999999999999"],
        ["prioritise", "9999", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_number_that_no_store_can_hold(path: Path, words: list[str]):
    refused = robustq(path, *words)
    assert refused.exit_code == 2 and "is not in the range" in refused.output


def test_a_store_that_is_here_is_asked_here(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Such as one that was fetched, whatever cluster is the usual one."""
    monkeypatch.setenv("ROBUSTQ_CLUSTER", "no-cluster")
    assert "8 jobs" in robustq(path, "pause", "--sweep", "small").output
    for store, words in ((path, ["--cluster", "no-cluster"]), (Path("nowhere.db"), [])):
        refused = robustq(store, "pause", "--sweep", "small", *words)
        assert refused.exit_code == 2 and "expected the address of a Ray dashboard" in refused.output
