"""A cluster of two nodes as docs/clusters.md starts it: a study sent from elsewhere, its sender killed, its results home.

The nodes are of this machine, each with a temporary folder of its own; the client has another home and folder.
"""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from robustq.jobs.results.rows import result_rows
from robustq.jobs.store.connection import open_store
from robustq.jobs.store.schema import attempt
from tests.helpers.postgres_server import free_port
from tests.helpers.ray_nodes import BIN, end_node, start_node, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
STUDY = """
name: far
models:
  a: {arch: lenet5, train: {epochs: 3, examples: 500}}
  mine: {file: "mine.py:make"}
attacks:
  - {name: pgd, eps: 0.1, steps: 10}
examples: 200
seeds: [0, 1, 2]
"""
MINE = "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"


class Head(NamedTuple):
    url: str
    env: dict[str, str]
    away: Path
    metrics: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    tmp_path = tmp_path_factory.mktemp("cluster")
    # Short: the paths of Ray's sockets may have 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="rq-"))
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ROBUSTQ_"))}
    env = clean | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = [free_port() for _ in range(6)]
    nodes = [
        start_node(
            ["--head", f"--port={ports[0]}", "--num-cpus=1", f"--temp-dir={temporary / 'one'}",
             "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
             f"--dashboard-agent-listen-port={ports[3]}", f"--metrics-export-port={ports[5]}"],
            env | {"ROBUSTQ_CLUSTER": f"http://127.0.0.1:{ports[1]}"}, tmp_path,  # as somebody may who sits at the head
        )
    ]  # fmt: skip
    found = Head(f"http://127.0.0.1:{ports[1]}", env, away, f"http://127.0.0.1:{ports[5]}/metrics")
    try:
        wait_for(lambda: "on http" in robustq(found, "status", check=False).stderr, 90)  # that there is no store yet
        nodes.append(
            start_node(
                [f"--address=127.0.0.1:{ports[0]}", "--num-cpus=1", f"--temp-dir={temporary / 'two'}",
                 f"--dashboard-agent-listen-port={ports[4]}"],
                env, tmp_path,
            )
        )  # fmt: skip
        yield found
    finally:
        for process in nodes:
            end_node(process)
        shutil.rmtree(temporary, ignore_errors=True)


def robustq(head: Head, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "robustq"), *words, "--cluster", head.url]
    ended = subprocess.run(command, env=head.env, cwd=head.away, capture_output=True, text=True, timeout=180)
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def metrics(head: Head) -> str:
    with urllib.request.urlopen(head.metrics, timeout=10) as answer:
        return answer.read().decode()


def test_a_study_goes_there_and_its_results_come_home(head: Head, tmp_path: Path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "far.yaml").write_text(STUDY)
    (folder / "mine.py").write_text(MINE)

    sent = robustq(head, "submit", str(folder / "far.yaml")).stdout
    number = sent.split()[0]
    assert number.startswith("robustq-far-") and "sent; follow it with: robustq attach" in sent
    shutil.rmtree(folder)  # what was sent is there
    follower = subprocess.Popen(
        [str(BIN / "robustq"), "attach", number, "--cluster", head.url], env=head.env, cwd=head.away,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(3)
    follower.kill()
    follower.wait()

    wait_for(lambda: "ray_robustq_jobs" in metrics(head), 60)
    shown = robustq(head, "attach", "far").stdout
    assert "sweep far: 9 jobs, 9 of them new" in shown and "far: accuracy in % on 200 images" in shown
    assert "9 done" in robustq(head, "status").stdout
    assert robustq(head, "stop", number).stdout == f"{number} had ended before, as SUCCEEDED\n"
    assert robustq(head, "logs", "1", "--json").stdout.lstrip().startswith("{")
    assert robustq(head, "cancel", "1").stdout == "0 jobs cancelled\n"
    refused = robustq(head, "logs", "999", check=False)
    assert (refused.returncode, refused.stderr) == (2, f"robustq: on {head.url}: there is no job 999\n")

    robustq(head, "fetch", "--out", "far.db", "--artifacts")
    store = open_store(str(head.away / "far.db"))
    with store.begin() as db:
        rows = result_rows(db)
        logs = db.execute(sa.select(attempt.c.log).where(attempt.c.log.is_not(None))).scalars().all()
    store.engine.dispose()
    assert {(row["model"], row["seed"]) for row in rows} == {(m, s) for m in ("a", "mine") for s in (0, 1, 2)}
    assert any("/one/" in log for log in logs) and any("/two/" in log for log in logs)  # both nodes worked
    assert len(list((head.away / "artifacts" / "blobs").glob("*/*"))) == 3
    again = robustq(head, "fetch", "--out", "far.db", check=False)
    assert again.returncode == 2 and "there is a file far.db already: move it away" in again.stderr


def test_a_stopped_study_goes_on_when_it_is_sent_again(head: Head, tmp_path: Path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "far.yaml").write_text(STUDY.replace("epochs: 3", "epochs: 5000"))
    (folder / "mine.py").write_text(MINE)
    first = robustq(head, "submit", str(folder / "far.yaml")).stdout.split()[0]
    again = robustq(head, "submit", str(folder / "far.yaml")).stdout
    assert again.startswith(f"{first} runs already; follow it with: ")
    wait_for(lambda: running(head), 60)
    assert robustq(head, "stop", "far").stdout == f"{first} stopped\n"
    assert robustq(head, "stop", first).stdout == f"{first} stopped\n"  # asked twice, nothing else is said
    wait_for(lambda: not running(head), 20)
    ended = robustq(head, "attach", first, check=False)
    assert ended.returncode == 1 and "the queue is intact" in ended.stdout
    robustq(head, "cancel", "--sweep", "far")
    second = robustq(head, "submit", str(folder / "far.yaml")).stdout.split()[0]
    assert second == f"{first}-2"
    assert "sweep far: 9 jobs, 0 of them new" in robustq(head, "attach", "far", check=False).stdout


def running(head: Head) -> bool:
    shown = robustq(head, "status", "--json", check=False)
    return shown.returncode == 0 and bool(json.loads(shown.stdout)["running"])  # at first there is no store


def test_a_cluster_that_asks_for_a_token_gets_one_or_nothing(head: Head):
    wrong = Head(head.url, head.env | {"RAY_AUTH_TOKEN": "0" * 64}, head.away, head.metrics)
    refused = robustq(wrong, "status", check=False)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"robustq: the cluster {head.url} asks for its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to it\n"
    )
