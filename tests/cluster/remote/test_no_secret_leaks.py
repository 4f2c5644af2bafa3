"""A study goes to a cluster whose store is on a server: marked passwords and tokens are in nothing that is left of it.

What may hold a mark is what was given it: the environment of processes, the study, and, of a model's address, the specs.
"""

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from tests.helpers.model_server import answering, serving
from tests.helpers.postgres_server import free_port, own_server
from tests.helpers.ray_nodes import BIN, end_node, start_node, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(400)]
BEGIN = "rqmark"  # of every mark; as it is in Base64, too, which HTTP sends names and passwords in
LEAK = re.compile(rb"(?:rqmark|cnFtYXJr)[A-Za-z0-9]*")
GIVEN = {"ROBUSTQ_STORE", "PGPASSWORD", "RAY_AUTH_TOKEN", "ROBUSTQ_UI_TOKEN"}
STUDY = """
name: marked
models:
  a: {{arch: lenet5, train: {{epochs: 1, examples: 100}}}}
  mine: {{file: "mine.py:make"}}
  far: {{file: "{far}"}}
  shut: {{file: "{shut}"}}
attacks: [{{name: square, eps: 0.1, queries: 20}}]
examples: 40
"""
MINE = """
import json, os, pathlib, sys, torch

seen = {"environ": dict(os.environ), "argv": sys.argv}
pathlib.Path("~/seen.json").expanduser().write_text(json.dumps(seen))

def make():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def marked(what: str) -> str:
    return f"{BEGIN}{what}{secrets.token_hex(8)}"


class Watch(threading.Thread):
    """Looks again and again at the command lines of all processes, and at the names of variables that hold a mark."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found: set[str] = set()
        self.looks, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.looks += 1
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):  # it ended, or is another user's
                    words = (process / "cmdline").read_bytes()
                    if LEAK.search(words):
                        self.found.add(f"the command {words!r}")
                    for variable in (process / "environ").read_bytes().split(b"\0"):
                        name = variable.partition(b"=")[0].decode(errors="replace")
                        if LEAK.search(variable) and name not in GIVEN:
                            self.found.add(f"the variable {name} of {words!r}")


class Place(NamedTuple):
    """A cluster and its store, and three who use them: its head, who is away, and who reads the store himself."""

    url: str
    address: str
    nodes: list[subprocess.Popen[bytes]]
    control: Any
    away: dict[str, str]
    near: dict[str, str]
    folder: Path
    temporary: Path
    log: Path
    printed: list[tuple[tuple[str, ...], str]]

    def robustq(self, env: dict[str, str], *words: str, code: int | None = 0) -> str:
        """What a command prints on both streams; it ends with this code."""
        command = [str(BIN / "robustq"), *words]
        ended = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=120)
        self.printed.append((words, ended.stdout + ended.stderr))
        assert code is None or ended.returncode == code, (words, ended.stdout + ended.stderr)
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stdout + ended.stderr


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    temporary = Path(tempfile.mkdtemp(prefix="rq-"))  # short: the paths of Ray's sockets may have 107 characters
    for name in ("home", "elsewhere", "work", "tmp"):
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        store, control = stack.enter_context(own_server(marked("server")))
        engine = sa.create_engine(store)
        with engine.connect() as db:
            log = Path(db.execute(sa.text("SHOW data_directory")).scalar_one()).parent / "log"
        engine.dispose()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ROBUSTQ_", "PG"))}
        clean |= {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path / "tmp"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        away = clean | {"HOME": str(tmp_path / "elsewhere"), "RAY_AUTH_TOKEN": marked("token")}
        ports = [free_port() for _ in range(5)]
        words = [
            "--head", f"--port={ports[0]}", "--num-cpus=2", f"--temp-dir={temporary}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
            f"--dashboard-agent-listen-port={ports[3]}", f"--metrics-export-port={ports[4]}",
        ]  # fmt: skip
        given = {"ROBUSTQ_STORE": store, "PGPASSWORD": marked("libpq"), "HOME": str(tmp_path / "home")}
        head = start_node(words, away | given | {"RAY_AUTH_MODE": "token"}, tmp_path)
        nodes = [head]
        stack.callback(lambda: [end_node(node) for node in nodes])
        near = clean | {"HOME": str(tmp_path / "elsewhere"), "ROBUSTQ_STORE": store, "ROBUSTQ_UI_TOKEN": marked("page")}
        url, address = f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}"
        yield Place(url, address, nodes, control, away, near, tmp_path / "work", temporary, log, [])


def write_study(folder: Path, far: str, shut: str) -> Path:
    """A study beside secrets that git ignores."""
    token = f"{far}?code={marked('query')}"
    password = shut.replace("://", f"://me:{marked('basic')}@")
    files = {
        "s/marked.yaml": STUDY.format(far=token, shut=password),
        "s/mine.py": MINE,
        "s/.env": f"KEY={marked('dotenv')}",
        "s/deploy.key": marked("key"),
        "s/.gitignore": "deploy.key",
    }
    (folder / "s").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "s" / "marked.yaml"


def use(place: Place, study: Path) -> None:
    """Everything that is done with a study on a cluster."""
    cluster = ("--cluster", place.url)
    assert "look like secrets: deploy.key" in place.robustq(place.away, "submit", str(study), *cluster, code=2)
    subprocess.run(["git", "init", "-q"], cwd=study.parent, check=True)
    assert "left out: .env looks like a secret" in place.robustq(place.away, "submit", str(study), *cluster)
    followed = place.robustq(place.away, "attach", *cluster, code=1)
    assert "1 job failed, job 5 with ValueError" in followed and "HTTP 403" in followed, followed
    assert "4 done" in place.robustq(place.away, "status", *cluster)
    rows = json.loads(place.robustq(place.away, "results", "--json", *cluster))
    assert {row["model"] for row in rows} == {"a", "mine", "far"}
    place.robustq(place.away, "logs", "5", *cluster)
    place.robustq(place.away, "stop", *cluster)
    assert "is on a server" in place.robustq(place.away, "fetch", *cluster, code=2)


def read(place: Place) -> None:
    """Everything that is asked of the store itself."""
    for words in [["report", "--sweep", "marked", "--out", "page.html"], ["export", "rows.csv"], ["export", "rows.arrow"],
                  ["export", "each.parquet", "--per-example"], ["db", "info"], ["db", "info", "--json"], ["status"],
                  ["results", "--format", "csv"], ["logs", "4"], ["logs", "5", "--json"]]:  # fmt: skip
        place.robustq(place.near, *words)
    place.robustq(place.near, "sql", "SELECT key, arch, error_message FROM job")  # a spec has its address whole
    place.robustq(place.near, "db", "snapshot", code=2)
    command = [str(BIN / "robustq"), "ui", "--port", "0"]
    with subprocess.Popen(command, env=place.near, cwd=place.folder, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        request = urllib.request.Request(
            line.split("?")[0], headers={"Authorization": f"Bearer {place.near['ROBUSTQ_UI_TOKEN']}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            page = answer.read().decode()
        assert "marked" in page
        server.terminate()
        place.printed.append((("ui",), line + page + server.stderr.read()))


def meet_errors(place: Place) -> None:
    """A wrong password, a server that is down, a cluster that is down."""
    cluster = ("--cluster", place.url)
    url = sa.make_url(place.near["ROBUSTQ_STORE"]).set(password=marked("wrong"))
    wrong = place.near | {"ROBUSTQ_STORE": url.render_as_string(hide_password=False)}
    assert "password authentication failed" in place.robustq(wrong, "status", code=2)
    refused = place.robustq(place.away | {"RAY_AUTH_TOKEN": marked("other")}, "status", *cluster, code=2)
    assert "asks for its token" in refused
    place.control("stop", "-m", "fast")
    place.robustq(place.near, "status", code=2)
    assert "postgresql+psycopg://robustq:***@" in place.robustq(place.away, "status", *cluster, code=2)
    end_node(place.nodes.pop())
    place.robustq(place.away, "status", *cluster, code=2)
    place.control("start")
    place.robustq(place.near, "retry", "--state", "failed", code=None)
    token = {"RAY_AUTH_TOKEN": place.away["RAY_AUTH_TOKEN"]}
    place.robustq(place.near | token, "drive", "--address", place.address, code=None)


def leaks_of_store(url: str) -> Iterator[str]:
    """Columns with a mark. A model's address is a part of what a job is: its specs hold it, and the study's."""
    engine = sa.create_engine(url)
    try:
        tables = sa.MetaData()
        tables.reflect(engine, views=True)
        assert {"job", "event", "attempt", "v_results"} <= set(tables.tables)
        with engine.connect() as db:
            for table in tables.tables.values():
                for row in db.execute(sa.select(table)).mappings():
                    for name, value in row.items():
                        text = bytes(value) if isinstance(value, bytes | memoryview) else repr(value).encode()
                        if table.name in ("job", "sweep") and name == "spec":
                            text = re.sub(rb"rqmark(query|basic)", b"", text)
                        yield from (f"{table.name}.{name}: {mark!r}" for mark in LEAK.findall(text))
    finally:
        engine.dispose()


def leaks_of_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            for mark in set(LEAK.findall(path.read_bytes())):
                yield f"{path.relative_to(folder)}: {mark!r}"


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    watch.start()
    try:
        yield watch
    finally:
        watch.over.set()
        watch.join()


def test_no_mark_is_left_but_where_it_was_put(place: Place, tmp_path: Path):
    with serving() as far, serving() as shut:
        far.reply = answering(lambda images: images.reshape(len(images), 64)[:, 20:30])
        # Not to the look at it before anything runs, but to the job.
        shut.reply = lambda images: far.reply(images) if len(images) < 9 else (403, b"no")
        study = write_study(place.folder, far.url, shut.url)
        with watched() as watch:
            wait_for(lambda: "on http" in place.robustq(place.away, "status", "--cluster", place.url, code=2), 90)
            use(place, study)
            read(place)
            meet_errors(place)
        assert far.requests and f"code={BEGIN}query" in far.requests[0]["path"]
        name, password = base64.b64decode(shut.requests[0]["authorization"].removeprefix("Basic ")).decode().split(":")
        assert name == "me" and password.startswith(f"{BEGIN}basic")
    assert watch.looks > 20 and not watch.found
    seen = tmp_path / "home" / "seen.json"
    environ = json.loads(seen.read_text())["environ"]
    assert {name for name, value in environ.items() if BEGIN in value} <= {"RAY_AUTH_TOKEN"}  # Ray's own
    seen.unlink()
    assert [(words, found) for words, text in place.printed for found in LEAK.findall(text.encode())] == []
    assert list(leaks_of_store(place.near["ROBUSTQ_STORE"])) == []
    assert not LEAK.search(place.log.read_bytes())
    sent = list(place.temporary.rglob("study/marked.yaml"))
    assert sent and all(f"{BEGIN}query" in path.read_text() for path in sent)  # what is found below can be found
    for path in [*sent, *(path for path in study.parent.iterdir() if path.is_file())]:
        path.unlink()
    assert [*leaks_of_files(place.temporary), *leaks_of_files(tmp_path)] == []
    assert list(place.temporary.glob("session_*/logs/job-driver-robustq-marked-*"))
