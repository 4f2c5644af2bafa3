"""A package on a local Ray: full, with a replica killed under load, and ended under load. No answer is wrong."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import numpy as np
import psutil
import pytest

from robustlib.packages.golden import read_golden
from tests.helpers.both_ways import RAY
from tests.helpers.serve_process import Served, serving
from tests.helpers.served import Reply, ask, npy

pytestmark = [*RAY, pytest.mark.timeout(240)]
KIND = "application/x-npy"
CLIENTS = 4
AGAIN_SECONDS = 90.0  # in which a replica that was killed has to be replaced


def replicas(served: Served) -> set[int]:
    """Processes of replicas."""
    found = set()
    for process in psutil.Process(served.process.pid).children(recursive=True):
        try:
            if any("ServeReplica" in word for word in process.cmdline()):
                found.add(process.pid)
        except psutil.Error:  # it has just ended
            continue
    return found


def told(served: Served) -> set[str]:
    """Names of the replicas whose metrics are given."""
    return set(re.findall(r'robustq_images_total\{replica="(\w+)"\}', ask(served.port, "/metrics").body.decode()))


@dataclass
class Load:
    """Clients that ask for one golden image after the other. asked: beginning, end and answer of each request."""

    served: Served
    images: np.ndarray
    logits: np.ndarray
    stop: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[float, float, Reply | Exception]] = field(default_factory=list)
    wrong: list[object] = field(default_factory=list)

    def client(self, k: int) -> None:
        random = np.random.default_rng(k)
        while not self.stop.is_set():
            number = int(random.integers(len(self.images)))
            began = time.monotonic()
            try:
                reply: Reply | Exception = ask(self.served.port, "/predict", npy(self.images[number]), KIND)
            except (OSError, HTTPException) as error:  # the latter of an answer that was cut off
                reply = error
            self.asked.append((began, time.monotonic(), reply))
            if isinstance(reply, Reply) and reply.status == 200:
                (answer,) = reply.json["answers"]
                if not np.allclose(answer["scores"], self.logits[number], atol=1e-4):
                    self.wrong.append(answer)
            elif isinstance(reply, Exception):
                time.sleep(0.05)

    def failed(self) -> list[tuple[float, float, Reply | Exception]]:
        return [one for one in self.asked if not isinstance(one[2], Reply) or one[2].status != 200]


@contextmanager
def load(served: Served, place: Path) -> Iterator[Load]:
    golden = read_golden((place / "golden.npz").read_bytes())
    found = Load(served, golden.images, golden.logits["model.onnx"])
    clients = [threading.Thread(target=found.client, args=(k,)) for k in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield found
    finally:
        found.stop.set()
        for client in clients:
            client.join()


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.2)


def check_doors(served: Served) -> None:
    """The proxy listens on loopback alone. The replicas' own ports listen everywhere, and ask for a token."""
    grpc = pytest.importorskip("grpc")
    listening = {
        connection.laddr
        for process in psutil.Process(served.process.pid).children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip for address in listening if address.port == served.port} == {"127.0.0.1"}
    told = set()
    for pid in replicas(served):
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                with grpc.insecure_channel(f"127.0.0.1:{connection.laddr.port}") as channel:
                    try:
                        told.add(channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10))
                    except grpc.RpcError as error:
                        told.add(error.code())
    # The latter of a port that knows no such call.
    assert grpc.StatusCode.UNAUTHENTICATED in told
    assert told <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}


def check_full(served: Served, image: np.ndarray) -> None:
    """While no replica moves, what finds no place in the queue is told to come again, and the rest is answered later."""
    found: list[Reply] = []
    clients = [
        threading.Thread(target=lambda: found.append(ask(served.port, "/predict", npy(image), KIND))) for _ in range(30)
    ]
    stopped = replicas(served)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    for client in clients:
        client.start()
    wait_until(lambda: any(reply.status == 503 for reply in found), 20)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    for client in clients:
        client.join()
    statuses = [reply.status for reply in found]
    assert sorted(set(statuses)) == [200, 503] and len(statuses) == 30
    assert {reply.headers["Retry-After"] for reply in found if reply.status == 503} == {"1"}


def check_a_kill(served: Served, place: Path) -> None:
    before, names = replicas(served), told(served)
    assert len(before) == len(names) == 2
    with load(served, place) as clients:
        wait_until(lambda: len(clients.asked) >= 20, 30)
        os.kill(min(before), signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(replicas(served) - before) == 1 and len(told(served) - names) == 1, AGAIN_SECONDS)
        again = time.monotonic()
        wait_until(lambda: sum(began > again for began, _, _ in clients.asked) >= 20, 30)
    assert not clients.wrong
    assert len(clients.failed()) <= CLIENTS
    for began, ended, reply in clients.failed():
        assert began <= killed <= ended and isinstance(reply, Reply) and reply.status >= 500
    assert sum(killed < began < again for began, _, _ in clients.asked) > 0  # the other went on meanwhile


def check_the_end(served: Served, place: Path) -> None:
    with load(served, place) as clients:
        wait_until(lambda: len(clients.asked) >= 20, 30)
        asked = time.monotonic()
        code, said = served.end()
    assert code == 0 and all("A worker died or was killed" in line for line in said.splitlines()), said
    assert not clients.wrong
    assert not [one for one in clients.failed() if one[0] < asked]
    assert {reply.status for _, _, reply in clients.failed() if isinstance(reply, Reply)} <= {404, 500, 503}
    assert isinstance(clients.asked[-1][2], ConnectionRefusedError)


def test_no_answer_is_wrong_whatever_becomes_of_a_replica(place: Path, tmp_path: Path):
    options = ("--ray", "--replicas", "2", "--batch-size", "2", "--request-images", "4", "--queue-images", "8")
    with serving(place, tmp_path, *options) as served:
        assert ask(served.port, "/health").json["status"] == "ok"
        assert ask(served.port, "/card").body == (place / "card.json").read_bytes()
        assert b'<script src="page/page.js">' in ask(served.port, "/").body
        assert ask(served.port, "/health", Host="elsewhere.test").status == 421
        check_doors(served)
        check_full(served, read_golden((place / "golden.npz").read_bytes()).images[0])
        wait_until(lambda: len(told(served)) == 2, 30)
        check_a_kill(served, place)
        check_the_end(served, place)
