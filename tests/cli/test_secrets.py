"""A marked password goes through every command, and is looked for in all that they print, keep and hand on."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from robustq import cli
from robustq.cluster.commands import one_model
from robustq.cluster.remote.ray_jobs_api import Cluster
from robustq.cluster.worker_isolation import isolated
from robustq.jobs.errors import SpecError
from robustq.jobs.queue.claims import claim
from robustq.jobs.queue.drivers import register
from robustq.jobs.queue.transitions import fail
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt, job, sweep, sweep_job
from robustq.jobs.text.told_specs import as_told
from tests.helpers.model_server import answering, serving

MARK = "geheim7"
ROOT = Path(__file__).parents[2]
STUDY = "name: s\nmodels: {a: {arch: lenet5, train: {epochs: 1}}}\nattacks: [{name: pgd, eps: 0.1}]\n"
AWAY = f"postgresql+psycopg://me:{MARK}@127.0.0.1:1/db"
URLS = [
    AWAY,
    f"postgresql+psycopg://127.0.0.1:1/db?user=me&password={MARK}",
    f"postgresql+psycopg://127.0.0.1:1/db?nope=1&password={MARK}",
    f"postgresql+psycopg://me:{MARK}@127.0.0.1:port/db",
    f"postgresql+psycopg://me:a@{MARK}@127.0.0.1:1/db",
    f"postgresql+psycopg://me:a /{MARK}@127.0.0.1:1/db",
    f"postgresql+nope://me:{MARK}@127.0.0.1:1/db",
    f"mysql://me:{MARK}@127.0.0.1:1/db",
    f"postgresql:/me:{MARK}@127.0.0.1/db",
    f"me:{MARK}@127.0.0.1/db",
]
COMMANDS = [
    ["status"], ["results"], ["results", "--format", "csv"], ["results", "--json"], ["logs", "1"], ["cancel", "1"],
    ["retry", "1"], ["pause", "--sweep", "s"], ["sql", "SELECT 1"], ["db", "info"], ["db", "info", "--json"],
    ["db", "upgrade"], ["db", "snapshot"], ["export", "a.csv"], ["report", "--sweep", "s"], ["ui", "--port", "0"],
    ["submit", "s.yaml"], ["run", "s.yaml", "--dry-run"], ["run", "s.yaml"], ["drive"], ["replay"],
    ["diff", "--versions", "kernel", "1", "2"], ["submit", "s.yaml", "--cluster", f"http://me:{MARK}@127.0.0.1:1"],
    ["status", "--cluster", f"ftp://me:{MARK}@127.0.0.1:1"],
    ["fetch", "--cluster", f"http://me:{MARK}@192.0.2.1:1"],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("url", URLS)
def test_no_command_prints_a_password(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY)
    for words in [*COMMANDS, ["diff", url, url], [url], ["--nope", url], ["status", url]]:
        ended = CliRunner().invoke(cli.main, ["--store", url, *words], prog_name="robustq")
        assert MARK not in ended.output, words
        assert ended.exit_code == 2 and isinstance(ended.exception, SystemExit), (words, ended.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.slow
def test_a_bug_tells_no_password_either(tmp_path: Path):
    code = f"from robustq import cli\nimport robustq.jobs.commands.store_info as u\nu.info = lambda url: int('at ' + url)\ncli.main(['--store', {AWAY!r}, 'db', 'info'])"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                           env=os.environ)  # fmt: skip
    assert ended.returncode == 1 and "ValueError" in ended.stderr and "me:***@" in ended.stderr
    assert MARK not in ended.stdout + ended.stderr


def test_a_store_with_a_password_is_not_sent_along():
    with pytest.raises(SpecError, match=r"me:\*\*\*@.* has a password.*: set ROBUSTQ_STORE on the head") as refused:
        Cluster("http://127.0.0.1:1", store=AWAY)
    assert MARK not in str(refused.value)


def test_processes_that_are_started_do_not_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROBUSTQ_STORE", AWAY)
    monkeypatch.setenv("PGPASSWORD", MARK)
    monkeypatch.setenv("ROBUSTQ_UI_TOKEN", MARK)
    monkeypatch.setenv("ROBUSTQ_SERVE_TOKEN", MARK)
    with isolated():
        assert not [name for name, value in os.environ.items() if MARK in value]
    assert os.environ["ROBUSTQ_STORE"] == AWAY and os.environ["PGPASSWORD"] == MARK
    assert os.environ["ROBUSTQ_UI_TOKEN"] == MARK and os.environ["ROBUSTQ_SERVE_TOKEN"] == MARK


@pytest.mark.slow
def test_a_cluster_is_not_told_the_command_line():
    code = (
        "import sys; from robustq.cluster.ray_connection import import_ray; ray = import_ray()\n"
        "import ray._private.worker as worker; print(worker.ray._private.utils.get_entrypoint_name())"
    )
    shown = subprocess.run([sys.executable, "-c", code, "--store", AWAY], cwd=ROOT, capture_output=True, text=True)
    assert "--store postgresql+psycopg://me:***@127.0.0.1:1/db" in shown.stdout, shown.stderr


def test_what_a_job_raised_is_kept_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY)
    assert CliRunner().invoke(cli.main, ["--store", "r.db", "submit", "s.yaml"]).exit_code == 0
    store = open_store("r.db", write=True)
    with store.begin() as db:
        register(db, "d", "here", 1, 0.0, "1")
        claimed = claim(db, "d", most=1, what=sa.true())[0]
        assert fail(db, claimed, "OSError", f"no {AWAY}", f"Traceback\nOSError: no {AWAY}")
        found = [*db.execute(sa.select(job.c.error_message)).scalars()]
        found += [*db.execute(sa.select(attempt.c.traceback)).scalars()]
    store.engine.dispose()
    assert MARK not in repr(found) and "me:***@127.0.0.1" in repr(found)


@pytest.mark.slow
def test_a_model_is_not_called_by_what_is_secret_in_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(one_model, "finish", lambda *given, **named: None)  # what is queued is not run
    with serving() as server:
        server.reply = answering(lambda images: np.eye(10)[[0] * len(images)])
        place = server.url.replace("://", f"://me:{MARK}@") + f"?code={MARK}"
        ended = CliRunner().invoke(cli.main, ["--store", "r.db", "attack", place, "--attack", "square"])
    assert ended.exit_code == 0, ended.output
    for words in [["logs", "1"], ["logs", "1", "--json"], ["status"], ["results", "--json"]]:
        told = CliRunner().invoke(cli.main, ["--store", "r.db", *words])
        assert told.exit_code == 0 and MARK not in told.output, (words, told.output)
    store = open_store("r.db")
    with store.begin() as db:
        assert set(db.execute(sa.select(sweep_job.c.model)).scalars()) == {"digits:predict"}
        assert set(db.execute(sa.select(job.c.arch)).scalars()) == {"digits:predict"}
        study = db.execute(sa.select(sweep.c.spec)).scalar_one()
    (before,), (after,) = (found["models"].values() for found in (study, as_told(study)))
    assert before["file"] == place and after == before | {"file": server.url}
    store.engine.dispose()


@pytest.mark.postgres
def test_a_server_tells_no_password(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(STUDY)
    url = sa.make_url(postgres)
    given = [url.set(password=MARK), url.update_query_dict({"password": MARK})]
    for store in [url.render_as_string(hide_password=False) for url in given]:
        for words in [["submit", "s.yaml"], ["status"], ["db", "info"], ["db", "info", "--json"], ["db", "upgrade"],
                      ["db", "snapshot"], ["sql", "SELECT 1"], ["results"], ["logs", "1"], ["logs", "99"]]:  # fmt: skip
            # In processes of their own, which end with their connections.
            ended = subprocess.run([sys.executable, "-m", "robustq", "--store", store, *words], capture_output=True, text=True,
                                   env=os.environ)  # fmt: skip
            assert MARK not in ended.stdout + ended.stderr and ended.returncode in (0, 2), words
