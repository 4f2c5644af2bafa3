"""The live page: it follows the store, never writes to it, answers only to this machine, and ends politely."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest
import sqlalchemy as sa

from robustq.jobs.errors import SpecError
from robustq.jobs.queue import drivers
from robustq.jobs.report.server import Pages, configuration, listen
from robustq.jobs.store.connection import Store, connect_store, open_store
from robustq.jobs.store.schema import job
from robustq.jobs.web.listening import host_allowed
from tests.helpers.fake_results import add_result
from tests.helpers.fake_sweep import accuracy, distrust, fill
from tests.helpers.html_reading import TOKEN, running, served

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def sections(self) -> dict[str, dict[str, str]]:
        return {section["name"]: section for section in json.loads(self.content)["sections"]}


class Client:
    """Asks a running server, with any method and Host header."""

    def __init__(self, port: int):
        self.port = port

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"} | (headers or {}))
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found


@pytest.fixture
def file(made_up: Store) -> Path:
    return Path(made_up.artifacts).parent / "results.db"


@pytest.fixture
def client(made_up: Store, file: Path):
    with served(file) as port:
        yield Client(port)


@pytest.mark.slow
def test_the_page_is_the_report_and_follows(made_up, client):
    fill(made_up, {"strong": 1.0})
    page = client.get("/")
    assert page.status == 200
    assert (
        f"strong is the most robust model at Linf 0.1: {100 * accuracy(1.0, 0.1, 'worst-case', 50):.1f} %" in page.text
    )
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.text)
    assert policy and "connect-src &#39;self&#39;" in policy[1] and "default-src &#39;none&#39;" in policy[1]


@pytest.mark.slow
def test_a_new_result_changes_the_tag_and_only_its_sections(made_up, client):
    sweep_id = fill(made_up, {"strong": 1.0})
    first = client.get("/live")
    tag = first.headers["ETag"]
    same = client.get("/live", headers={"If-None-Match": tag})
    assert (same.status, same.content) == (304, b"")
    with made_up.begin() as db:
        add_result(db, sweep_id, "newcomer", "pgd", 0.1)
    second = client.get("/live", headers={"If-None-Match": tag})
    assert second.status == 200 and second.headers["ETag"] != tag
    before, after = (answer.sections() for answer in (first, second))
    assert "newcomer" in after["leaderboard"]["html"]
    assert before["leaderboard"]["hash"] != after["leaderboard"]["hash"]
    assert before["training"]["hash"] == after["training"]["hash"]


@pytest.mark.slow
def test_a_page_of_what_was_kept_is_the_page_made_anew(made_up):
    """What is kept between pages is what cannot change: a verdict can, and another sweep's rows are others."""
    sweep_id = fill(made_up, {"strong": 1.0, "masked": 2.0})
    fill(made_up, {"strong": 0.5}, name="another")
    pages = Pages(made_up)
    before = {name: pages.live(name) for name in ("made-up", "another")}
    with made_up.begin() as db:
        distrust(db, "masked", "no gradient")
        add_result(db, sweep_id, "newcomer", "pgd", 0.1)
    after = {name: pages.live(name) for name in before}
    assert after == {name: Pages(made_up).live(name) for name in before}
    assert after["made-up"] != before["made-up"] and b"no gradient" in after["made-up"][1]


@pytest.mark.slow
def test_jobs_of_a_driver_that_died_run_no_more_on_the_page(made_up):
    """As in `robustq status`: their lease has most of a minute to go, and the store still has them as running."""
    fill(made_up, {"strong": 1.0}, seeds=(0, 1))
    gone: set[int] = set()
    with made_up.begin() as db:
        for name, pid in (("alive", 7), ("other", 8)):
            drivers.register(db, name, "here", pid, 0.0, "0", f"identity {pid}")
        for id_, name in ((2, "alive"), (3, "other")):
            at = {"state": "running", "lease_owner": name, "progress_done": 10, "progress_total": 50, "cost": 1.0}
            db.execute(sa.update(job).where(job.c.id == id_).values(**at, started_at=time.time() - 10))
    pages = Pages(made_up, lambda pid, identity: pid in gone)
    page = pages.made(None).whole.decode()
    assert "10 of 50" in page and "left by a driver" not in page and " left." in page
    gone.add(8)
    page = pages.made(None).whole.decode()  # nothing in the store has changed
    line = "1 job left by a driver that died (pid 8 on here): run again, or robustq drive --sweep made-up, to go on"
    assert line in page and page.count("10 of 50") == 1 and " left." in page
    gone.add(7)
    page = pages.made(None).whole.decode()
    assert "2 jobs left by a driver that died (pid 7 on here, pid 8 on here)" in page
    assert "10 of 50" not in page and " left." not in page


@pytest.mark.slow
def test_progress_changes_the_tag(made_up, client):
    fill(made_up, {"strong": 1.0})
    with made_up.begin() as db:
        running = {"state": "running", "progress_done": 10, "progress_total": 50, "started_at": 0.0}
        db.execute(sa.update(job).where(job.c.id == 2).values(**running))
    first = client.get("/live")
    progress = first.sections()["progress"]["html"]
    assert "10 of 50" in progress and "1 running" in progress
    with made_up.begin() as db:
        db.execute(sa.update(job).where(job.c.id == 2).values(progress_done=20))
    assert client.get("/live", headers={"If-None-Match": first.headers["ETag"]}).status == 200


@pytest.mark.slow
def test_sweeps_are_chosen_by_name(made_up, client):
    fill(made_up, {"old": 1.0}, name="first")
    fill(made_up, {"new": 0.5}, name="second")
    assert "new is the most robust model" in client.get("/").text
    assert "old is the most robust model" in client.get("/?sweep=first").text
    missing = client.get("/?sweep=third")
    assert (missing.status, missing.text) == (404, "there is no sweep 'third', the store has: first, second\n")


@pytest.mark.slow
def test_a_sweep_is_shown_beside_another(made_up, client):
    """Of the same images: strong falls at distance i / 50, middling at 0.3 of it."""
    fill(made_up, {"strong": 1.0, "alone": 0.5}, name="first", radii=(0.1,))
    fill(made_up, {"strong": 0.3}, name="second", radii=(0.1,))
    plain = client.get("/?sweep=second")
    assert 'id="compared"' not in plain.text and '<select id="beside">' in plain.text
    page = client.get("/?sweep=second&with=first")
    section = page.text.partition('id="compared"')[2].partition("</section>")[0]
    before, after = (100 * accuracy(strength, 0.1, "pgd", 50) for strength in (0.3, 1.0))
    words = " ".join(re.sub(r"<[^>]*>", " ", section).split())
    assert "Beside first" in words
    assert f"strong pgd Linf 0.1 0 50 {before:.1f} {after:.1f} {after - before:+.1f} [" in words
    assert "alone" not in words.partition("p exact")[2] and "4 have no like in the other." in words
    names = [name for name in client.get("/live?sweep=second&with=first").sections()]
    assert names.index("compared") == names.index("verdict") + 1
    tags = {client.get(f"/live?sweep=second{other}").headers["ETag"] for other in ("", "&with=first", "&with=second")}
    assert len(tags) == 2  # beside itself it is as alone
    missing = client.get("/?sweep=second&with=none")
    assert (missing.status, missing.text) == (404, "there is no sweep 'none', the store has: first, second\n")


@pytest.mark.slow
def test_a_store_without_a_sweep_waits(made_up, client):
    assert "No sweep yet" in client.get("/").text
    assert client.get("/live").sections() == {}
    fill(made_up, {"strong": 1.0})
    assert "strong is the most robust model" in client.get("/").text


@pytest.mark.slow
def test_a_page_without_a_store_waits_for_one(tmp_path):
    path = tmp_path / "later" / "results.db"
    awaited = connect_store(str(path), awaited=True)
    with running(configuration(awaited, TOKEN, insecure=False)) as port:
        client = Client(port)
        first = client.get("/")
        assert first.status == 200 and "No store yet" in first.text and str(path) in first.text
        live = client.get("/live")
        assert live.sections() == {}
        assert client.get("/live", headers={"If-None-Match": live.headers["ETag"]}).status == 304
        assert not path.parent.exists()
        made = open_store(str(path), create=True, write=True)
        assert "No sweep yet" in client.get("/").text
        assert client.get("/live", headers={"If-None-Match": live.headers["ETag"]}).status == 200
        fill(made, {"strong": 1.0})
        assert "strong is the most robust model" in client.get("/").text
        made.engine.dispose()


@pytest.mark.slow
def test_what_comes_and_is_no_store_is_told(tmp_path):
    path = tmp_path / "results.db"
    awaited = connect_store(str(path), awaited=True)
    with running(configuration(awaited, TOKEN, insecure=False)) as port:
        path.write_text("no database at all, however long one looks at it\n" * 50)
        answer = Client(port).get("/")
        assert answer.status == 503 and "it is no SQLite database" in answer.text


@pytest.mark.slow
def test_the_store_is_left_as_it_was(made_up, file, client):
    fill(made_up, {"strong": 1.0})
    made_up.engine.dispose()  # its log is written into the file when the last writer leaves
    before, when = file.read_bytes(), file.stat().st_mtime_ns
    for path in ("/", "/live", "/?sweep=none"):
        client.get(path)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.get("/", method=method).status == 405
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, when)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8501", "127.0.0.1:8501", "[::1]:8501", "LOCALHOST", "127.0.0.2:8501"]
)
def test_loopback_names_are_answered(host):
    assert host_allowed(host, anywhere=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8501", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1",
             "localhost:8501@evil.example", "localhost evil", "[::1", "127.0.0.1:80:80", "::1"]
)  # fmt: skip
def test_other_names_are_not(client, host):
    assert not host_allowed(host, anywhere=False)
    assert client.get("/", headers={"Host": host}).status == 421
    assert client.get("/live", headers={"Host": host}).status == 421


def test_a_server_for_all_is_reached_by_address_but_not_rebound():
    assert host_allowed("10.0.0.1:8501", anywhere=True)
    assert host_allowed(f"{socket.gethostname()}:8501", anywhere=True)
    assert not host_allowed("evil.example", anywhere=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_others_are_let_in_only_when_told(host):
    with pytest.raises(SpecError, match="--insecure serves it nevertheless"):
        listen(host, 0, insecure=False)


def test_a_port_in_use_is_one_line():
    with listen("127.0.0.1", 0, insecure=False) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=rf"--port {port} of 127.0.0.1 cannot be used \(.*\): name another one"):
            listen("127.0.0.1", port, insecure=False)


def serving(store: Store, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robustq", "--store", store.url, "ui", "--port", "0", *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.slow
def test_an_interrupt_ends_it_with_0(made_up):
    fill(made_up, {"strong": 1.0})
    server = serving(made_up)
    assert server.stderr is not None
    line = server.stderr.readline()
    found = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32}) shows sqlite:", line)
    assert found, line
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as asking:  # waits in line until it serves
        head = f"GET /live HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {found[2]}\r\nConnection: close\r\n\r\n"
        asking.sendall(head.encode())
        assert asking.recv(100).startswith(b"HTTP/1.1 200 ")
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert server.stderr.read() == ""
    server.stderr.close()


@pytest.mark.slow
def test_a_missing_package_is_one_line(made_up, tmp_path):
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')\n")
    command = [sys.executable, "-m", "robustq", "--store", made_up.url, "ui", "--port", "0"]
    places = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr == "robustq: robustq ui needs the package uvicorn: pip install starlette uvicorn\n"
